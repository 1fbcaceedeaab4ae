"""Sums over programs in the launch that makes the parts: the last program to come adds them."""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops.kernels.triton._launch import MANY


@triton.jit
def write(out, total, parts, arrived, splits, rows, columns, place, inside):
    """A tile of a result, (rows, columns), which is this program's alone, or of which it has a part."""
    if parts is not None:
        leave(parts, total, rows, columns, place, inside)
        count = all_left(arrived, splits)
        inside &= count > 0
        total = added(parts, total, count, rows, columns, place, inside)
    tl.store(out + place, total, mask=inside)


@triton.jit
def leave(parts, part, rows, columns, place, inside):
    """This program's part, for others to find once the program has counted itself."""
    tl.store(parts + tl.program_id(1).to(tl.int64) * rows * columns + place, part, mask=inside)


@triton.jit
def all_left(arrived, splits):
    """How many parts this program adds: all of them if it is the last to come, else none.

    The counter is zero again afterwards, for the next launch.
    """
    tl.debug_barrier()  # what all threads left is there before one of them counts the program
    counter = arrived + tl.program_id(0)
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == splits - 1
    tl.store(counter, 0, mask=last)
    return tl.where(last, splits, 0)


@triton.jit
def added(parts, like, count, rows, columns, place, inside):
    """The sum of ``count`` parts by the programs' numbers, not as they came: the same from run to run."""
    total = tl.zeros_like(like)
    part = tl.zeros((), tl.int64)
    for _ in tl.range(0, count, num_stages=1):
        total += tl.load(parts + part * rows * columns + place, mask=inside, other=0, cache_modifier=".cg")
        part += 1
    return total


def shared(z: Tensor, splits: int, tiles: int, *shape: int) -> tuple[Tensor | None, Tensor | None]:
    """Room for the parts of ``splits`` programs of results of this shape, and a zero to count them for each tile.

    Neither where each program has its tile for itself.
    """
    if splits == 1:
        return None, None
    return z.new_empty(splits, *shape, dtype=torch.float32), _counters(z, tiles)


def _counters(z: Tensor, tiles: int) -> Tensor:
    """Launches on a device's default stream come one after the other and share counters, which each leaves at zero.

    On another stream a launch has its own, at the price of filling them: it may run beside others, a graph of it may
    be replayed beside others, and what is made there while a graph warms up may not stay.
    """
    if tiles > MANY or (z.is_cuda and torch.cuda.current_stream(z.device).cuda_stream):
        return z.new_zeros(tiles, dtype=torch.int32)
    return _zeros(z.device)


@cache
def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(MANY, dtype=torch.int32, device=device)
