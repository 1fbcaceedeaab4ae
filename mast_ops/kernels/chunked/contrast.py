"""All pairs: blocks of rows of the score matrix, one row of the masks at a time.

Anchors and candidates are packed first: masked, normalised, and without the dimensions where the mask is zero, so
that a sparse mask costs what it keeps. The scores are then plain matrix products of the packed sides. With the
candidates the anchors themselves the scores are symmetric, and only the upper blocks are computed.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mast_ops._precision import wide
from mast_ops.kernels.chunked.scores import Form, Scores, Some, Statistics, Workspace
from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastGradients
from mast_ops.kernels.eager.contrast import EPS

_SPARSE = 0.75  # a mask with a smaller share of non-zero dimensions is packed without the others


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


class _Side(NamedTuple):
    """Embeddings as one mask sees them: of unit length, (n, d), with what it takes to go back."""

    unit: Tensor
    inverse_norm: Tensor
    tiny: Tensor  # rows whose norm is below EPS: they are scaled, not normalised
    mask: Tensor
    dims: Tensor | None  # those kept; None: all D
    raw: Tensor  # the embeddings, (n, D)

    @classmethod
    def pack(cls, raw: Tensor, poison: Tensor, mask: Tensor) -> Self:
        kept = mask != 0
        dims = kept.nonzero()[:, 0] if kept.sum() < _SPARSE * len(mask) else None
        if dims is not None:
            dims = dims if len(dims) else dims.new_zeros(1)  # to carry a NaN
            mask = mask[dims]
        unit = cls._select(raw, dims) * mask
        norm = unit.square().sum(1).sqrt_().add_(poison)
        inverse_norm = norm.clamp_min(EPS).reciprocal()
        return cls(unit.mul_(inverse_norm[:, None]), inverse_norm, norm < EPS, mask, dims, raw)

    def only(self, samples: Tensor) -> Self:
        return self._replace(
            unit=self.unit[samples],
            inverse_norm=self.inverse_norm[samples],
            tiny=self.tiny[samples],
            raw=self.raw[samples],
        )

    def unpack(self, gradient: Tensor, scale: float, g_raw: Tensor, g_mask: Tensor) -> Tensor:
        """Add what ``scale`` times a gradient of ``unit`` means for the embeddings and the mask. Overwrites it.

        Returns the sum of ``unit`` times the gradient.
        """
        along = (self.unit * gradient).sum(1)
        total = along.sum()
        if self.dims is not None and not total.isfinite():
            g_raw += 0 * along[:, None]  # what no mask keeps must not look finite either
            g_mask += 0 * total
        along.masked_fill_(self.tiny, 0)
        gradient.addcmul_(self.unit, along[:, None], value=-1).mul_((self.inverse_norm * scale)[:, None])
        g_own_mask = (gradient * self._select(self.raw, self.dims)).sum(0)
        if self.dims is None:
            g_mask += g_own_mask
            g_raw.addcmul_(gradient, self.mask)
        else:
            g_mask.index_add_(0, self.dims, g_own_mask)
            g_raw.index_add_(1, self.dims, gradient.mul_(self.mask))
        return total

    @staticmethod
    def _select(raw: Tensor, dims: Tensor | None) -> Tensor:
        return raw if dims is None else raw.index_select(1, dims)


class Packed(NamedTuple):
    """What one row of the masks has to do with: its samples, and the packed sides."""

    r: int
    samples: Tensor | None  # None: all
    sides: tuple[_Side, _Side]

    def of(self, x: Tensor) -> Tensor:
        return x[:, self.r] if self.samples is None else x[self.samples]

    def store(self, room: Tensor, value: Tensor, rows: slice = slice(None)) -> None:
        if self.samples is None:
            room[rows, self.r] = value
        else:
            room[self.samples[rows]] = value

    def unpack(self, g_anchors: Tensor, g_candidates: Tensor, scale: float, total: ContrastGradients) -> None:
        """Add what gradients of the packed sides mean for the embeddings, the mask and the temperature."""
        anchors, candidates = self.sides
        g_raw, g_mask = total.z0 if total.z1 is None else total.z1, total.masks[self.r]
        along = candidates.unpack(g_candidates, scale, g_raw, g_mask)
        if anchors is candidates:
            along = along / 2  # each pair stands there twice
        elif self.samples is None:
            anchors.unpack(g_anchors, scale, total.z0, g_mask)
        else:
            own = torch.zeros_like(anchors.raw)
            anchors.unpack(g_anchors, scale, own, g_mask)
            total.z0.index_add_(0, self.samples, own)
        total.inverse_temperature.add_(along)


class _Part(NamedTuple):
    """The share of the work of one row of the masks."""

    packed: Packed
    scores: Scores

    def of(self, both: Both) -> Some:
        return self.packed.of(both[0]), both[1][:, self.packed.r] if self.scores.form.both_ways else None

    def store(self, out: Contrasted, statistics: Statistics) -> None:
        for room, both in zip(out, statistics, strict=True):
            for side, value in zip(room, both, strict=True):
                if value is not None:
                    self.packed.store(side, value)

    def add_gradients(self, total: ContrastGradients, grads: Some, lse: Some) -> None:
        self.packed.unpack(*self.scores.gradients(grads, lse), self.scores.scale, total)


def pack(problem: Contrast) -> Iterator[Packed]:
    """Both sides under each row of the masks that some anchor reads."""
    masks, row = problem.masks, problem.row
    alone = problem.z1 is None
    raw0 = problem.z0.to(wide(problem.z0.dtype))
    raw1 = raw0 if alone else problem.candidates.to(raw0.dtype)
    poison0 = (0 * raw0).sum(1)  # NaN where a sample is not finite, were it in a dimension that no mask keeps
    poison1 = poison0 if alone else (0 * raw1).sum(1)
    groups: list[tuple[int, Tensor | None]] = [(r, None) for r in range(len(masks))]
    if row is not None:
        split = torch.split(row.argsort(stable=True), row.bincount().tolist())
        groups = [(r, samples) for r, samples in enumerate(split) if len(samples)]
    for r, samples in groups:
        anchors = candidates = _Side.pack(raw1, poison1, masks[r])
        if alone and samples is not None:
            anchors = candidates.only(samples)
        elif not alone and samples is not None:
            anchors = _Side.pack(raw0[samples], poison0[samples], masks[r])
        elif not alone:
            anchors = _Side.pack(raw0, poison0, masks[r])
        yield Packed(r, samples, (anchors, candidates))


def _parts(problem: Contrast) -> Iterator[_Part]:
    sample0, scale = problem.sample0, float(problem.inverse_temperature)
    sample1 = sample0 if problem.sample1 is None else problem.sample1
    alone, workspace = problem.z1 is None, Workspace(problem.z0.new_empty(0, dtype=wide(problem.z0.dtype)))
    everyone = torch.arange(len(sample0), device=sample0.device)
    if problem.row is None:
        pairs = positives(sample0, sample1, everyone if alone else None)
    for packed in pack(problem):
        samples = everyone if packed.samples is None else packed.samples
        itself = samples if alone else None
        if packed.samples is not None:
            pairs = positives(sample0[samples], sample1, itself)
        form = Form(itself, problem.both_ways, problem.symmetric)
        units = packed.sides[0].unit, packed.sides[1].unit
        yield _Part(packed, Scores(units, scale, pairs, form, workspace))


def positives(sample0: Tensor, sample1: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every (anchor, candidate) of one sample, but for an anchor's own place; by ascending anchor."""
    sample0 = sample0.contiguous()  # as searchsorted wants it
    ordered, order = sample1.sort(stable=True)
    low = torch.searchsorted(ordered, sample0)
    count = torch.searchsorted(ordered, sample0, right=True) - low
    anchor = torch.repeat_interleave(torch.arange(len(sample0), device=sample0.device), count)
    place = torch.arange(len(anchor), device=anchor.device) - (count.cumsum(0) - count)[anchor]
    candidate = order[low[anchor] + place]
    if own is None:
        return anchor, candidate
    other = candidate != own[anchor]
    return anchor[other], candidate[other]


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
