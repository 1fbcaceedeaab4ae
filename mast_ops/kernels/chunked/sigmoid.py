"""All pairs, each by itself: blocks of rows of the score matrix, one row of the masks at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops.kernels.chunked.contrast import Packed, new_gradients, new_losses, pack, positives
from mast_ops.kernels.chunked.scores import BLOCK, Workspace
from mast_ops.kernels.contract import Contrast, ContrastGradients

_STRAIGHT = 60.0  # softplus(x) is x from here on, to the last digit


def forward(problem: Contrast, bias: Tensor) -> tuple[Tensor, Tensor]:
    losses, slopes = new_losses(problem), new_losses(problem)
    for part in pack(problem):
        for rows, block, at in _blocks(problem, part, float(bias)):
            _sum(part, rows, (losses, slopes), block, at)
    return losses, slopes


def backward(problem: Contrast, bias: Tensor, grad: Tensor) -> ContrastGradients:
    total = new_gradients(problem)
    for part in pack(problem):
        _add_gradients(problem, part, float(bias), part.of(grad), total)
    return total


def fused(problem: Contrast, bias: Tensor, weight: float) -> tuple[Tensor, Tensor, ContrastGradients]:
    losses, slopes, total = new_losses(problem), new_losses(problem), new_gradients(problem)
    for part in pack(problem):
        grad = torch.full_like(part.of(losses), weight)
        _add_gradients(problem, part, float(bias), grad, total, (losses, slopes))
    return losses, slopes, total


Place = tuple[Tensor, Tensor]


def _blocks(problem: Contrast, part: Packed, bias: float) -> Iterator[tuple[slice, Tensor, Place]]:
    """Logits of a block of rows, with their sign changed where there is a positive, and where that is."""
    anchors, candidates = (side.unit for side in part.sides)
    sample0 = problem.sample0 if part.samples is None else problem.sample0[part.samples]
    assert problem.sample1 is not None
    workspace, scale = Workspace(anchors), float(problem.inverse_temperature)
    height = max(BLOCK.get(anchors.device.type, BLOCK["cuda"]) // len(candidates), 16)
    for start in range(0, len(anchors), height):
        rows = slice(start, min(start + height, len(anchors)))
        block = workspace.take("block", rows.stop - start, len(candidates)).fill_(bias)
        block.addmm_(anchors[rows], candidates.T, alpha=scale)
        at = positives(sample0[rows], problem.sample1, None)
        block[at] = -block[at]  # softplus(x) - x would lose what a large x leaves
        yield rows, block, at


def _sum(part: Packed, rows: slice, out: tuple[Tensor, Tensor], block: Tensor, at: Place) -> Tensor:
    """Losses of a block, and the sums of their slopes, to where they belong. Returns the slopes, in its place."""
    losses = F.softplus(block, threshold=_STRAIGHT).sum(1)
    slope = block.sigmoid_()
    slope[at] = -slope[at]
    for room, value in zip(out, (losses, slope.sum(1)), strict=True):
        part.store(room, value, rows)
    return slope


def _add_gradients(
    problem: Contrast,
    part: Packed,
    bias: float,
    grad: Tensor,
    total: ContrastGradients,
    *out: tuple[Tensor, Tensor],
) -> None:
    anchors, candidates = (side.unit for side in part.sides)
    g_anchors, g_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
    for rows, block, at in _blocks(problem, part, bias):
        if out:
            weight = _sum(part, rows, out[0], block, at)
        else:
            weight = block.sigmoid_()
            weight[at] = -weight[at]
        weight.mul_(grad[rows, None])
        torch.mm(weight, candidates, out=g_anchors[rows])
        g_candidates.addmm_(weight.T, anchors[rows])
    part.unpack(g_anchors, g_candidates, float(problem.inverse_temperature), total)
