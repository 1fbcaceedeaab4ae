"""How the kernels are cut into programs: one table, to tune on a GPU in one place."""

import os
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
from torch import Tensor

# Fixed when the kernels are decorated: TRITON_INTERPRET runs them on CPU tensors, in numpy.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Packed rows are padded to this many, a multiple of every tile of rows in the table below.
TILE = 16 if INTERPRETED else 128
# Programs that keep a GPU busy: four a multiprocessor for the small memory-bound ones, two waves of the large ones.
MANY, FEW = (4, 4) if INTERPRETED else (528, 264)
# Rows of several masks are packed for one launch while they, and their gradients, take no more bytes than this.
ROOM = 64 * 2**20
# Where products of all pairs are the library's: rows longer than this; scores of a tile, which stay in the GPU's L2 in
# float32; bytes of their gradients for a stripe of rows and all columns, whose product then sums by itself.
WIDE, SCORES, WEIGHTS = (32, 512, 2048) if INTERPRETED else (256, 2**23, 2**26)
# Partial results for each candidate, over tiles of anchors of all masks of a launch.
PARTS = 4 if INTERPRETED else 33
# Splitting a sum among programs leaves partial results in memory. Those of pairs are small; others bound their own.
MOST_SPLITS = 64


class Launch(NamedTuple):
    """One program's tile, and how its work is spread over threads and time."""

    rows: int
    columns: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


class Depth(NamedTuple):
    """How products of packed rows go through their ``width`` dimensions.

    Rows of no more dimensions than the table's ``whole`` stay on the chip: there is one launch for each of ``blocks``,
    and a mask is the work of the smallest that holds what it keeps. Longer rows are gone through in steps of the one
    block, as far as the mask keeps any; the gradient has one program for ``slice`` of them.
    """

    width: int
    blocks: tuple[int, ...]
    slice: int
    is_whole: bool

    @property
    def step(self) -> int:
        return self.blocks[0]

    def slice_of(self, block: int) -> int:
        return block if self.is_whole else self.slice


# For half precision, and for float32.
_TABLE: dict[str, tuple[Launch, Launch | None]] = {
    "pairs": (Launch(64, 64, 4, 3), Launch(64, 32, 8, 2)),
    "pairs_many": (Launch(64, 32, 4, 3), Launch(32, 32, 8, 2)),
    "pairs_own": (Launch(64, 64, 8, 3), Launch(64, 32, 8, 2)),
    "pairs_backward": (Launch(32, 64, 4, 3), Launch(16, 64, 8, 2)),
    "pairs_backward_many": (Launch(32, 32, 4, 3), Launch(16, 16, 4, 2)),
    "pack": (Launch(32, 64, 4, 2), Launch(32, 32, 4, 2)),
    "unpack": (Launch(64, 32, 8, 2), Launch(32, 32, 4, 2)),
    "logsumexp": (Launch(128, 128, 8, 3), Launch(128, 64, 8, 3)),
    "logsumexp_whole": (Launch(128, 64, 8, 3), None),  # at two stages nothing hides the next tile's copies
    "gradient": (Launch(64, 64, 8, 3), Launch(64, 32, 8, 3)),
    "gradient_whole": (Launch(64, 64, 8, 3), None),
    # Of products by the library. As many columns as rows are padded to: weights are written to the last.
    "scored": (Launch(32, 128, 8, 2), Launch(32, 128, 8, 2)),
}
_DEPTH = ((64, 256, 256), (32, 128, 0))  # step, the largest slice, the longest whole rows
_TINY, _TINY_DEPTH = Launch(16, 16, 1, 1), (16, 32, 32)


def launch(kernel: str, dtype: torch.dtype) -> Launch:
    tile = _TINY if INTERPRETED else _TABLE[kernel][dtype == torch.float32]
    assert tile is not None, f"{kernel} is not for {dtype}"
    return tile


def depth(dtype: torch.dtype, d: int) -> Depth:
    step, most, whole = _TINY_DEPTH if INTERPRETED else _DEPTH[dtype == torch.float32]
    if power(d) <= whole:
        smaller = [step << i for i in range(whole.bit_length()) if step << i < power(d)]
        return Depth(power(d), (*smaller, power(d)), power(d), True)
    size = max(step, min(most, power(d)))
    return Depth(triton.cdiv(d, size) * size, (step,), size, False)


def pairs_launch(kernel: str, dtype: torch.dtype, num_rows: int) -> Launch:
    """Smaller as R grows: the tile of masks, or its gradient, is (R, columns), and stays on the chip."""
    block = power(num_rows)
    tile = launch(kernel if block <= 16 else kernel + "_many", dtype)
    return tile._replace(columns=max(16, min(tile.columns, 4096 // block)))


def pooling(dtype: torch.dtype) -> str:
    """Of a product of squares, made of the input, with squared masks.

    Half-precision input: three products of bfloat16, 16 digits. The compiler fetches the input as wide as the
    operands that are made of it: for those of 16 bits 16 bytes at a time, for tf32 8, and out of order.
    """
    return _POOLING if dtype != torch.float32 else "tf32x3"


_POOLING = "tf32" if INTERPRETED else "bf16x3"  # the interpreter knows one, and rounds in neither


def precision(dtype: torch.dtype) -> str:
    """Of a product of float32 operands.

    Half-precision input: tf32 keeps as many digits as the input has. float32 input: three tf32 products keep
    float32's digits, on tensor cores, and need fewer registers than plain float32 arithmetic.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"


def split(total: int, block: int, programs: int, wanted: int, most: int = MOST_SPLITS) -> tuple[int, int]:
    """Cut ``total`` among (splits, span), span a multiple of ``block``, so that about ``wanted`` programs run."""
    blocks = triton.cdiv(total, block)
    each = triton.cdiv(blocks, max(1, min(wanted // programs, most, blocks)))
    return triton.cdiv(blocks, each), each * block


def power(n: int, least: int = 16) -> int:
    """The next power of two; a side of a matrix product has at least 16."""
    return max(least, 1 << (n - 1).bit_length())


def readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The interpreter knows no bfloat16 arithmetic: it gets float32."""
    return tuple(t.float() if INTERPRETED and t.dtype == torch.bfloat16 else t for t in tensors)


def on(z: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of ``z``."""
    return torch.cuda.device_of(z)
