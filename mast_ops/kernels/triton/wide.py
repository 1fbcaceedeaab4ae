"""Scores of long rows: products by the library, a tile at a time, which the kernels of short rows go through.

The kernels' own products of long rows read much more than they compute, and the gradient makes the scores anew for
every few columns of its result. Here a tile of scores stays in the GPU's cache until a kernel has made sums or weights
of it, and weights wait for those of a whole stripe of rows, so that one product sums them all. float16 has sums in
float32, as in the kernels; float32 is multiplied as torch was told, in TF32 where that is allowed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops.kernels.chunked.units import multiply
from mast_ops.kernels.contract import LENGTH
from mast_ops.kernels.triton import _launch
from mast_ops.kernels.triton._launch import FEW, TILE, Launch, launch, split
from mast_ops.kernels.triton._plan import Plan, Side


class Tile(NamedTuple):
    """Products of packed rows with packed columns."""

    rows: slice
    columns: slice
    products: Tensor

    @property
    def first(self) -> tuple[int, int]:
        return self.rows.start, self.columns.start


class Tiles:
    """Stripes of the rows of ``side``, tiles of each by the rows ``across``, for one mask after the other."""

    def __init__(self, plan: Plan, side: Side, across: Side) -> None:
        self.side, self.across = side, across
        size = plan.unit_dtype.itemsize
        self.height = _whole(_launch.WEIGHTS // (size * across.padded), side.padded)
        self.width = _whole(_launch.SCORES // self.height, across.padded)
        self._products = plan.empty(self.height * self.width)
        self._weights = torch.empty(0, dtype=plan.unit_dtype, device=plan.device)
        self.tile: Launch = launch("scored", plan.dtype)
        self.blocks = -(-min(self.height, len(side.order)) // self.tile.rows)  # that hold a row, of a stripe
        self.splits, self.span = split(self.width, self.tile.columns, self.blocks, FEW)

    @property
    def parts(self) -> int:
        """Programs that see a row, each another part of it."""
        return self.splits * -(-self.across.padded // self.width)

    def part(self, tile: Tile) -> int:
        """The first of this tile's."""
        before: int = tile.columns.start // self.width
        return before * self.splits

    def grid(self, tile: Tile) -> tuple[int, int, int]:
        return (tile.rows.stop - tile.rows.start) // self.tile.rows, self.splits, 1

    def of(self, mask: int) -> Iterator[Tile]:
        """``mask``: of those that are packed now."""
        for rows in _pieces(self.side.padded, self.height):
            yield from self._of(mask, rows)

    def _of(self, mask: int, rows: slice) -> Iterator[Tile]:
        for columns in _pieces(self.across.padded, self.width):
            left, right = self.side.packed[mask, rows], self.across.packed[mask, columns]
            room = self._products[: len(left) * len(right)].view(len(left), len(right))
            yield Tile(rows, columns, _product(left, right.T, room))

    def pull(self, mask: int, grad: Tensor) -> Iterator[tuple[Tile, Tensor]]:
        """Tiles, and room for their weights. Of those of a stripe ``grad`` gets the product with the other side."""
        if not len(self._weights):
            self._weights = self._weights.new_empty(self.height, self.across.padded)
        for rows in _pieces(self.side.padded, self.height):
            for tile in self._of(mask, rows):
                yield tile, self._weights[: rows.stop - rows.start, tile.columns]
            part = _product(self._weights[: rows.stop - rows.start], self.across.packed[mask], grad[rows])
            part.mul_(1 / LENGTH)


def _pieces(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _whole(size: int, most: int) -> int:
    """In whole tiles, as packed rows are."""
    return min(max(size // TILE, 1) * TILE, most)


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cpu:  # under the interpreter: torch has no product there with sums in another dtype
        return torch.mm(left.float(), right.float(), out=out)
    return multiply(left, right, out)
