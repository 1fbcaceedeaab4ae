"""All pairs, each by itself: blocks of rows of the score matrix, one row of the masks at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mast_ops.kernels.chunked.contrast import Part, new_gradients, new_losses, new_workspace, parts, positives_of
from mast_ops.kernels.chunked.positives import Compared, Listed
from mast_ops.kernels.contract import Contrast, ContrastGradients

_STRAIGHT = 60.0  # softplus(x) is x from here on, to the last digit


def forward(problem: Contrast, bias: Tensor) -> tuple[Tensor, Tensor]:
    losses, slopes = new_losses(problem), new_losses(problem)
    for tile in _tiles(problem, float(bias)):
        tile.store_sums(losses, slopes)
    return losses, slopes


def backward(problem: Contrast, bias: Tensor, grad: Tensor) -> ContrastGradients:
    total, scale = new_gradients(problem), float(problem.inverse_temperature)
    for tile in _tiles(problem, float(bias)):
        tile.logits.sigmoid_()
        tile.at.negate(tile.logits)
        tile.add_gradients(tile.part.of(grad)[tile.rows, None], scale, total)
    return total


def fused(problem: Contrast, bias: Tensor, weight: float) -> tuple[Tensor, Tensor, ContrastGradients]:
    losses, slopes, total = new_losses(problem), new_losses(problem), new_gradients(problem)
    scale = float(problem.inverse_temperature)
    for tile in _tiles(problem, float(bias)):
        tile.store_sums(losses, slopes)
        tile.add_gradients(weight, scale, total)
    return losses, slopes, total


class _Tile(NamedTuple):
    """Logits of a block of anchors with all candidates, with their sign changed where there is a positive."""

    part: Part
    rows: slice
    logits: Tensor
    at: Listed | Compared
    last: bool

    def store_sums(self, losses: Tensor, slopes: Tensor) -> None:
        """Losses, and slopes, which take the place of the logits."""
        self.part.store(losses, F.softplus(self.logits, threshold=_STRAIGHT).sum(1), self.rows)
        self.at.negate(self.logits.sigmoid_())
        self.part.store(slopes, self.logits.sum(1), self.rows)

    def add_gradients(self, grad: Tensor | float, scale: float, total: ContrastGradients) -> None:
        self.part.products.add(self.logits.mul_(grad), self.rows, 0)
        if self.last:
            self.part.products.finish(scale, total)


def _tiles(problem: Contrast, bias: float) -> Iterator[_Tile]:
    scale, workspace, positives_in = float(problem.inverse_temperature), new_workspace(problem), positives_of(problem)
    for part in parts(problem, workspace):
        positives = positives_in(part)
        for index, rows in enumerate(positives.blocks):
            logits = workspace.take("block", rows.stop - rows.start, part.products.shape[1])
            part.products.write(logits, rows, 0, scale, bias)
            at = positives.at(index)
            at.negate(logits)  # softplus(x) - x would lose what a large x leaves
            yield _Tile(part, rows, logits, at, rows is positives.blocks[-1])
