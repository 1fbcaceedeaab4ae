"""Variables that a process must be started with, set by starting it once more."""

import os
import sys

FIXED = {
    # glibc hands large buffers back to the system and faults them in again at the next allocation, or not,
    # depending on what else was freed: bimodal noise of up to the time of the operator itself. Blocks up to
    # 1 GiB stay in the heap, and the heap is not trimmed; the same for every contender.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    # Inductor's caches replay old code when an operator behind an unchanged name has changed.
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "KINETO_LOG_LEVEL": "6",  # the profiler, which counts bytes here, is otherwise chatty
}
_STARTED = "MAST_OPS_BENCHMARK"


def with_fixed_environment() -> None:
    """Replace this process by itself under :data:`FIXED`; returns in the process that has it."""
    if not sys.platform.startswith("linux") or _STARTED in os.environ:
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | FIXED | {_STARTED: "1"})
