"""All pairs: blocks of rows of the score matrix, one row of the masks at a time.

Anchors and candidates are packed first: masked, normalised, and without the dimensions where the mask is zero, so
that a sparse mask costs what it keeps. The scores are then plain matrix products of the packed sides. With the
candidates the anchors themselves the scores are symmetric, and only the upper blocks are computed. Where anchors have
almost as many masks as there are anchors, nothing is packed, see :class:`mast_ops.kernels.chunked.own.Own`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops._precision import wide
from mast_ops.kernels.chunked.own import Own
from mast_ops.kernels.chunked.positives import Positives
from mast_ops.kernels.chunked.products import Products, Workspace, blocks
from mast_ops.kernels.chunked.scores import Form, Scores, Some, Statistics
from mast_ops.kernels.chunked.units import Side, units_of
from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastGradients

_GROUPED = 48  # anchors of one row of the masks, on average, from which each row is worth packing


def forward(problem: Contrast) -> Contrasted:
    out = _new_outputs(problem)
    for part in _parts(problem):
        part.store(out, part.scores.statistics())
    return out


def backward(problem: Contrast, grads: Both, lse: Both) -> ContrastGradients:
    total = new_gradients(problem)
    for part in _parts(problem):
        part.add_gradients(total, part.of(grads), part.of(lse))
    return total


def fused(problem: Contrast, weights: tuple[float, float]) -> tuple[Both, ContrastGradients]:
    """The scores are computed once where they may be kept."""
    out, total = _new_outputs(problem), new_gradients(problem)
    for part in _parts(problem):
        part.scores.keep()
        statistics = part.scores.statistics()
        part.store(out, statistics)
        of_anchors, of_candidates = statistics.lse
        g_candidates = None if of_candidates is None else torch.full_like(of_candidates, weights[1])
        part.add_gradients(total, (torch.full_like(of_anchors, weights[0]), g_candidates), statistics.lse)
    return out.losses, total


class Part(NamedTuple):
    """A share of the work: anchors that read one row of the masks, or all anchors where each has its own."""

    products: Products
    r: int | None  # the column of their results; None: results have none
    samples: Tensor | None  # None: all

    def of(self, x: Tensor) -> Tensor:
        return x[self.samples] if self.samples is not None else x if self.r is None else x[:, self.r]

    def store(self, room: Tensor, value: Tensor, rows: slice = slice(None)) -> None:
        if self.samples is not None:
            room[self.samples[rows]] = value
        elif self.r is None:
            room[rows] = value
        else:
            room[rows, self.r] = value


class _Scored(NamedTuple):
    part: Part
    scores: Scores

    def of(self, both: Both) -> Some:
        return self.part.of(both[0]), self.part.of(both[1]) if self.scores.form.both_ways else None

    def store(self, out: Contrasted, statistics: Statistics) -> None:
        for room, both in zip(out, statistics, strict=True):
            for side, value in zip(room, both, strict=True):
                if value is not None:
                    self.part.store(side, value)

    def add_gradients(self, total: ContrastGradients, grads: Some, lse: Some) -> None:
        self.scores.add_gradients(grads, lse)
        self.part.products.finish(self.scores.scale, total)


def parts(problem: Contrast, workspace: Workspace) -> Iterator[Part]:
    """Each row of the masks that some anchor reads, with both sides under it."""
    masks, row = problem.masks, problem.row
    alone = problem.z1 is None
    raw0 = problem.z0.to(wide(problem.z0.dtype))
    raw1 = raw0 if alone else problem.candidates.to(raw0.dtype)
    groups: list[tuple[int, Tensor | None]] = [(r, None) for r in range(len(masks))]
    if row is not None:
        split = torch.split(row.argsort(stable=True), row.bincount().tolist())
        groups = [(r, samples) for r, samples in enumerate(split) if len(samples)]
        if len(row) < _GROUPED * len(groups):
            yield Part(Own((raw0, raw1), masks, row, workspace), None, None)
            return
    poison0 = (0 * raw0).sum(1)  # NaN where a sample is not finite, were it in a dimension that no mask keeps
    poison1 = poison0 if alone else (0 * raw1).sum(1)
    for r, samples in groups:
        anchors = candidates = Side.pack(raw1, poison1, masks[r])
        if alone and samples is not None:
            anchors = candidates.only(samples)
        elif not alone and samples is not None:
            anchors = Side.pack(raw0[samples], poison0[samples], masks[r])
        elif not alone:
            anchors = Side.pack(raw0, poison0, masks[r])
        yield Part(units_of(problem.z0)(r, samples, (anchors, candidates)), None if samples is not None else r, samples)


def new_workspace(problem: Contrast) -> Workspace:
    return Workspace(problem.z0.new_empty(0, dtype=wide(problem.z0.dtype)))


def positives_of(problem: Contrast) -> Callable[[Part], Positives]:
    """Of any part; they are sought once where all parts have all samples."""
    sample0 = problem.sample0
    sample1 = sample0 if problem.sample1 is None else problem.sample1
    everyone = torch.arange(len(sample0), device=sample0.device)
    of_all: list[Positives] = []

    def of(part: Part) -> Positives:
        samples = everyone if part.samples is None else part.samples
        itself, rows = samples if problem.z1 is None else None, blocks(part.products.shape, sample0.device)
        if part.samples is not None:
            return Positives(sample0[samples], sample1, itself, rows)
        if not of_all:
            of_all.append(Positives(sample0, sample1, itself, rows))
        return of_all[0]

    return of


def _parts(problem: Contrast) -> Iterator[_Scored]:
    scale, workspace, positives = float(problem.inverse_temperature), new_workspace(problem), positives_of(problem)
    form = Form(problem.both_ways, problem.symmetric)
    for part in parts(problem, workspace):
        yield _Scored(part, Scores(part.products, scale, positives(part), form, workspace))


def new_losses(problem: Contrast, of_candidates: bool = False) -> Tensor:
    size = len(problem.z0) if not of_candidates else len(problem.candidates) if problem.both_ways else 0
    shape = (size, len(problem.masks)) if problem.row is None else (size,)
    return torch.empty(shape, dtype=wide(problem.z0.dtype), device=problem.z0.device)


def _new_outputs(problem: Contrast) -> Contrasted:
    losses, lse = ((new_losses(problem), new_losses(problem, of_candidates=True)) for _ in range(2))
    return Contrasted(losses, lse)


def new_gradients(problem: Contrast) -> ContrastGradients:
    z0, z1, masks, inverse_temperature = problem[:4]
    new = torch.zeros(0, dtype=wide(z0.dtype), device=z0.device)
    g_z1 = None if z1 is None else new.new_zeros(z1.shape)
    return ContrastGradients(
        new.new_zeros(z0.shape), g_z1, new.new_zeros(masks.shape), new.new_zeros(inverse_temperature.shape)
    )
