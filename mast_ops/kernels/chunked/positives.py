"""Where an anchor and a candidate show one sample: they are listed while few, and else found in the tile.

With one positive an anchor, or a few views, a list is shorter than any tile and its scores are treated one by one.
With class labels a list would be as long as the score matrix: there the ids of a tile are compared when it is made.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LISTED = 4  # pairs for each anchor and candidate up to which they are listed


class Listed(NamedTuple):
    """Places in a tile."""

    row: Tensor
    column: Tensor

    def take(self, tile: Tensor) -> Tensor:
        return tile[self.row, self.column]

    def sums(self, taken: Tensor, axis: int, size: int) -> Tensor:
        """Of each row (axis 0) or column (1), of what :meth:`take` gave."""
        return taken.new_zeros(size).index_add_(0, self[axis], taken)

    def negate(self, tile: Tensor) -> None:
        tile[self.row, self.column] *= -1


class Compared(NamedTuple):
    """A tile of truth values."""

    same: Tensor

    def take(self, tile: Tensor) -> Tensor:
        return torch.where(self.same, tile, 0)

    def sums(self, taken: Tensor, axis: int, size: int) -> Tensor:
        return taken.sum(1 - axis)

    def negate(self, tile: Tensor) -> None:
        torch.where(self.same, -tile, tile, out=tile)


class Positives:
    """Of the tiles that ``blocks`` of anchors make with all candidates.

    ``itself``: where each anchor has itself among the candidates, a score that does not count.
    """

    def __init__(self, sample0: Tensor, sample1: Tensor, itself: Tensor | None, blocks: list[slice]) -> None:
        self.sample0, self.sample1, self.itself, self.blocks = sample0.contiguous(), sample1, itself, blocks
        ordered, order = sample1.sort(stable=True)
        low, high = _interval(self.sample0, ordered)
        count = high - low
        self.row_count = count if itself is None else count - 1
        self.many = int(count.sum()) > _LISTED * (len(sample0) + len(sample1))
        if not self.many:
            self._listed = self._split(low, count, order)

    @property
    def column_count(self) -> Tensor:
        low, high = _interval(self.sample1.contiguous(), self.sample0.sort().values)
        return high - low

    def at(self, index: int, first: int = 0) -> Listed | Compared:
        """Those in the tile of a block and of the candidates from ``first`` on."""
        if self.many:
            rows = self.blocks[index]
            same = self.sample0[rows, None] == self.sample1[first:]
            if self.itself is not None:
                same.scatter_(1, self.itself[rows, None] - first, False)
            return Compared(same)
        row, column = self._listed[index]
        if first:
            inside = column >= first
            row, column = row[inside], column[inside] - first
        return Listed(row - self.blocks[index].start, column)

    def _split(self, low: Tensor, count: Tensor, order: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(anchors, candidates) of every block, by ascending anchor."""
        anchor = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        place = torch.arange(len(anchor), device=anchor.device) - (count.cumsum(0) - count)[anchor]
        candidate = order[low[anchor] + place]
        if self.itself is not None:
            other = candidate != self.itself[anchor]
            anchor, candidate = anchor[other], candidate[other]
        starts = torch.tensor([rows.start for rows in self.blocks[1:]], device=anchor.device)
        bounds = torch.searchsorted(anchor, starts).cpu()
        return list(zip(anchor.tensor_split(bounds), candidate.tensor_split(bounds), strict=True))


def _interval(sample: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each id stands ``among`` sorted ones: from, to."""
    return torch.searchsorted(among, sample), torch.searchsorted(among, sample, right=True)
