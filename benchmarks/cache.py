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

_N = 256  # kernels are made for sizes that 16 divides, whatever they are


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cache", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--pairs-dim", type=int, nargs="*", default=[8192], help="D of pairs; default 8192")
    parser.add_argument("--contrast-dim", type=int, nargs="*", default=[256], help="D of all pairs; default 256")
    parser.add_argument("--rows", type=int, default=15, help="K; default 15")
    args = parser.parse_args(argv)
    os.environ["TRITON_CACHE_DIR"] = str(args.folder.resolve())
    os.environ.pop("TRITON_INTERPRET", None)
    pretend()
    for dtype in (getattr(torch, name) for name in args.dtype):
        for d in args.pairs_dim:
            _pairs(dtype, d, args.rows)
        for d in args.contrast_dim:
            _contrast(dtype, d)
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


def _pairs(dtype: torch.dtype, d: int, rows: int) -> None:
    from mast_ops.kernels.contract import Gap, Table
    from mast_ops.kernels.triton import pairs

    z, squared = torch.ones(_N, d, dtype=dtype), torch.ones(rows, d)
    pairs.gap_sums(Gap(z, z), 1, None)
    pairs.gap_sums_backward(torch.ones(1, d), Gap(z, z), None)
    for row, grad in ((None, torch.ones(_N, rows)), (torch.zeros(_N, dtype=torch.long), torch.ones(_N))):
        table = Table(squared, row)
        pairs.distance(Gap(z, z), table)
        pairs.distance_backward(grad, Gap(z, z), table)
        pairs.products(z, z, table)
        pairs.products_backward((grad, grad, grad), z, z, table)


def _contrast(dtype: torch.dtype, d: int) -> None:
    from mast_ops.kernels.contract import Contrast
    from mast_ops.kernels.triton import contrast

    z, masks, ids, one = torch.ones(_N, d, dtype=dtype), torch.ones(1, d), torch.arange(_N), torch.tensor(1.0)
    grad = torch.ones(_N, 1)
    for problem in (Contrast(z, z, masks, one, ids, ids, None, True), Contrast(z, None, masks, one, ids, None)):
        contrast.forward(problem)
        contrast.backward(problem, (grad, grad), (grad, grad))


if __name__ == "__main__":
    main()
