"""``python -m benchmarks.cache FOLDER``: the benchmarks' Triton kernels compiled for a Hopper GPU, without one.

Carry the folder, set TRITON_CACHE_DIR to it, and a GPU machine with the same Python and Triton compiles none of them.
The kernels' own functions run on CPU tensors under a driver that says sm_90: every launch is compiled, and not run.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Settings, Shape

_N = 256


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cache", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["bfloat16"])
    args = parser.parse_args(argv)
    os.environ["TRITON_CACHE_DIR"] = str(args.folder.resolve())
    os.environ.pop("TRITON_INTERPRET", None)
    pretend()
    for dtype in (getattr(torch, name) for name in args.dtype):
        for suite, shape in sorted(launched(dtype)):
            _KERNELS[suite](dtype, shape.d, shape.k)
            if _KERNELS[suite] is _contrast:
                _contrast(dtype, shape.d, 1, 1 << 15)  # many programs: sums are in one part, a kernel of its own
            if _KERNELS[suite] is _pairs:
                for n in (1 << 15, 16):  # in one part forward, or backward
                    _pairs(dtype, shape.d, shape.k, n)
    print(f"{len(list(args.folder.rglob('*.cubin')))} kernels in {args.folder}")


def pretend() -> None:
    """A driver of a GPU that is not there, and launches that end when the kernel is compiled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    answers: dict[str, Callable[..., Any]] = {
        "__init__": lambda self: None,
        "get_current_target": lambda self: GPUTarget("cuda", 90, 32),
        "get_current_device": lambda self: 0,
        "get_current_stream": lambda self, device=0: 0,
        "get_active_torch_device": lambda self: torch.device("cpu"),
    }
    rest = {name: lambda self, *_: None for name in DriverBase.__abstractmethods__ - answers.keys()}
    triton.runtime.driver.set_active(type("Hopper", (DriverBase,), {**rest, **answers})())
    run = triton.JITFunction.run
    triton.JITFunction.run = lambda self, *given, grid, warmup, **named: run(
        self, *given, grid=grid, warmup=True, **named
    )


def launched(dtype: torch.dtype) -> set[tuple[str, Shape]]:
    """What the benchmarks measure on a GPU, sweeps of sizes included, where mast_ops would choose Triton."""
    from benchmarks.contenders import SUITES
    from benchmarks.scaling import CENTRES, shapes
    from mast_ops.ops.backend import widest

    settings = Settings("cuda", dtype, "triton", quick=False, compile=False, seconds=1.0)
    found = {(name, make(settings).shape) for name, makes in SUITES.items() for make in makes}
    for name, centres in CENTRES.items():
        found |= {(name, shape) for _, shape in shapes(centres[1], settings)}
    # one N stands for all: kernels are made for sizes that 16 divides, whatever they are
    found = {(name, shape._replace(n=_N)) for name, shape in found if name in _KERNELS}  # not moments: products alone
    longest = widest("contrast", dtype)
    return {(name, shape) for name, shape in found if _KERNELS[name] is not _contrast or shape.d <= longest}


def _sums(dtype: torch.dtype, d: int, rows: int, n: int = _N, row: torch.Tensor | None = None) -> None:
    from mast_ops.kernels.contract import Gap
    from mast_ops.kernels.triton import pairs

    z = torch.empty(n, d, dtype=dtype, device="meta")
    pairs.gap_sums(Gap(z, z), rows, row)
    pairs.gap_sums_backward(z.new_empty(1 if row is None else rows, d, dtype=torch.float32), Gap(z, z), row)


def _pairs(dtype: torch.dtype, d: int, rows: int, n: int = _N) -> None:
    from mast_ops.kernels.contract import Gap, Table
    from mast_ops.kernels.triton import pairs

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    z, masks, own = empty(n, d, dtype=dtype), empty(rows, d), empty(n, dtype=torch.long)
    _sums(dtype, d, rows, n)
    _sums(dtype, d, rows, n, own)
    for row, grad in ((None, empty(n, rows)), (own, empty(n))):
        table = Table(masks, row)
        pairs.distance(Gap(z, z), table)
        pairs.distance_backward(grad, Gap(z, z), table)
        pairs.products(z, z, table)
        pairs.products_backward((grad, grad, grad), z, z, table)


def _contrast(dtype: torch.dtype, d: int, rows: int, n: int = _N) -> None:
    from mast_ops.kernels.contract import Contrast
    from mast_ops.kernels.triton import contrast

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    z, ids, one = empty(n, d, dtype=dtype), empty(n, dtype=torch.long), empty()
    masks, grad = empty(1, d), empty(n, 1)  # one kernel for any number of masks
    problems = [
        (Contrast(z, z, masks, one, ids, ids), grad),
        (Contrast(z, z, masks, one, ids, ids, None, True), grad),
        (Contrast(z, None, masks, one, ids, None), grad),
        (Contrast(z, z, empty(min(rows, 2), d), one, ids, ids, ids), grad[:, 0]),
    ]
    for problem, g in problems:
        contrast.forward(problem)
        contrast.backward(problem, (g, g), (g, g))


_KERNELS: dict[str, Callable[[torch.dtype, int, int], None]] = {
    "pairs": _pairs,
    "pairs-mean": _sums,
    "factorised": _pairs,
    "cosine": _pairs,
    "info-nce": _contrast,
    "nt-xent": _contrast,
    "own": _contrast,
    "sparse": _contrast,
}


if __name__ == "__main__":
    main()
