"""Where a figure comes from: machine, versions, commit, and the variables that change timings."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import mast_ops

_PEERS = ("lightly", "pytorch-metric-learning", "cut-cross-entropy", "liger-kernel")
_PACKAGES = ("triton", "numpy", "torchvision", "kornia", *_PEERS)
_VARIABLES = ("OMP_", "MKL_", "KMP_", "MALLOC_", "LD_PRELOAD", "TORCH", "TRITON_", "PYTORCH_", "CUDA_", "MAST_OPS_")


def record(device: str) -> dict[str, object]:
    changes = _git("status", "--porcelain")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "os": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "mast_ops": mast_ops.__version__,
            **{name: _version(name) for name in _PACKAGES},
        },
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else changes != ""},
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """None where this is no clone."""
    try:
        done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
