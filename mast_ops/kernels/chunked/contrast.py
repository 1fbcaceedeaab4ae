"""All pairs: blocks of rows of the score matrix, one subspace at a time.

A subspace's anchors and candidates are packed first: masked, normalised, and without the columns where its mask
is zero, so that a sparse mask costs what it keeps. The scores are then plain matrix products of the packed sides.
With the candidates the anchors themselves the scores are symmetric, and only the upper blocks are computed.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mast_ops._precision import wide
from mast_ops.kernels.chunked.scores import Scores, Workspace
from mast_ops.kernels.eager.contrast import EPS

_SPARSE = 0.75  # a mask with a smaller share of non-zero columns is packed without the others


def forward(
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None,
    subspace: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses of :func:`mast_ops.kernels.eager.contrast.contrast`, then the logsumexps under them."""
    outs = _new_outputs(z0, z1, masks, subspace, columns)
    for part in _parts(z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns):
        _store(outs, part, part.scores.statistics())
    return outs


def backward(
    g_rows: Tensor,
    g_columns: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None,
    subspace: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of z0, z1, masks and the inverse temperature, in the dtype that sums run in."""
    grads = _Gradients.zeros(z0, z1, masks, inverse_temperature)
    for part in _parts(z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns):
        lse = part.of(row_lse), part.of_columns(column_lse)
        grads.add(part, lse, part.of(g_rows), part.of_columns(g_columns))
    return grads.z0, grads.z1, grads.masks, grads.inverse_temperature


def fused(
    row_weight: float,
    column_weight: float,
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None,
    subspace: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Losses, and the gradients of their weighted sum: the scores are computed once where they may be kept."""
    outs = _new_outputs(z0, z1, masks, subspace, columns)
    grads = _Gradients.zeros(z0, z1, masks, inverse_temperature)
    for part in _parts(z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns):
        part.scores.keep()
        statistics = part.scores.statistics()
        _store(outs, part, statistics)
        row_lse, column_lse = statistics[2:]
        g_columns = None if column_lse is None else torch.full_like(column_lse, column_weight)
        grads.add(part, (row_lse, column_lse), torch.full_like(row_lse, row_weight), g_columns)
    return outs[0], outs[1], *grads


class _Side(NamedTuple):
    """Embeddings as one subspace sees them: of unit length, (n, d), with what it takes to go back."""

    unit: Tensor
    inverse_norm: Tensor
    tiny: Tensor  # rows whose norm is below EPS: they are scaled, not normalised
    mask: Tensor
    columns: Tensor | None  # None: all D
    raw: Tensor  # the embeddings, (n, D)

    @classmethod
    def pack(cls, raw: Tensor, poison: Tensor, mask: Tensor) -> Self:
        kept = mask != 0
        columns = kept.nonzero()[:, 0] if kept.sum() < _SPARSE * len(mask) else None
        if columns is not None:
            mask = mask[columns]
        unit = cls._select(raw, columns) * mask
        norm = unit.square().sum(1).sqrt_().add_(poison)
        inverse_norm = norm.clamp_min(EPS).reciprocal()
        return cls(unit.mul_(inverse_norm[:, None]), inverse_norm, norm < EPS, mask, columns, raw)

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
        along.masked_fill_(self.tiny, 0)
        gradient.addcmul_(self.unit, along[:, None], value=-1).mul_((self.inverse_norm * scale)[:, None])
        g_own_mask = (gradient * self._select(self.raw, self.columns)).sum(0)
        if self.columns is None:
            g_mask += g_own_mask
            g_raw.addcmul_(gradient, self.mask)
        else:
            g_mask.index_add_(0, self.columns, g_own_mask)
            g_raw.index_add_(1, self.columns, gradient.mul_(self.mask))
        return total

    @staticmethod
    def _select(raw: Tensor, columns: Tensor | None) -> Tensor:
        return raw if columns is None else raw.index_select(1, columns)


class _Part(NamedTuple):
    """One subspace's share of the work: which samples, which mask, and the packed sides."""

    k: int
    samples: Tensor | None
    scores: Scores
    sides: tuple[_Side, _Side]

    def of(self, x: Tensor) -> Tensor:
        return x[:, self.k] if self.samples is None else x[self.samples]

    def of_columns(self, x: Tensor) -> Tensor | None:
        return x[:, self.k] if self.scores.columns else None


def _parts(
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None,
    subspace: Tensor | None,
    columns: bool,
) -> Iterator[_Part]:
    scale = float(inverse_temperature)
    raw0 = z0.to(wide(z0.dtype))
    raw1 = raw0 if z1 is None else z1.to(raw0.dtype)
    poison0 = (0 * raw0).sum(1)  # NaN where a sample is not finite, were it in a column that no mask keeps
    poison1 = poison0 if z1 is None else (0 * raw1).sum(1)
    sample1 = sample0 if sample1 is None else sample1
    workspace = Workspace(raw0)
    everyone = torch.arange(len(z0), device=z0.device)
    groups = [(k, everyone) for k in range(len(masks))]
    if subspace is None:
        pairs = _positives(sample0, sample1, everyone if z1 is None else None)
    else:
        split = torch.split(subspace.argsort(stable=True), subspace.bincount().tolist())
        groups = [(k, samples) for k, samples in enumerate(split) if len(samples)]
    for k, samples in groups:
        candidates = _Side.pack(raw1, poison1, masks[k])
        if z1 is None:
            anchors = candidates if subspace is None else candidates.only(samples)
        elif subspace is None:
            anchors = _Side.pack(raw0, poison0, masks[k])
        else:
            anchors = _Side.pack(raw0[samples], poison0[samples], masks[k])
        if subspace is not None:
            pairs = _positives(sample0[samples], sample1, samples if z1 is None else None)
        symmetric = z1 is None and subspace is None
        scores = Scores(
            anchors.unit,
            candidates.unit,
            scale,
            pairs,
            samples if z1 is None else None,
            columns,
            symmetric,
            workspace,
        )
        yield _Part(k, None if subspace is None else samples, scores, (anchors, candidates))


def _positives(sample0: Tensor, sample1: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every (anchor, candidate) of one sample, but for an anchor's own place; by ascending anchor."""
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


def _new_outputs(
    z0: Tensor, z1: Tensor | None, masks: Tensor, subspace: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (len(z0), len(masks)) if subspace is None else (len(z0),)
    other = (len(z1) if columns and z1 is not None else 0, *shape[1:])
    like = torch.empty(0, dtype=wide(z0.dtype), device=z0.device)
    return like.new_empty(shape), like.new_empty(other), like.new_empty(shape), like.new_empty(other)


def _store(
    outs: tuple[Tensor, Tensor, Tensor, Tensor],
    part: _Part,
    values: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
) -> None:
    for out, value in zip(outs, values, strict=True):
        if value is None:
            continue
        if part.samples is None:
            out[:, part.k] = value
        else:
            out[part.samples] = value


class _Gradients(NamedTuple):
    """Gradients so far."""

    z0: Tensor
    z1: Tensor | None
    masks: Tensor
    inverse_temperature: Tensor

    @classmethod
    def zeros(cls, z0: Tensor, z1: Tensor | None, masks: Tensor, inverse_temperature: Tensor) -> Self:
        new = torch.zeros(0, dtype=wide(z0.dtype), device=z0.device)
        g_z1 = None if z1 is None else new.new_zeros(z1.shape)
        return cls(new.new_zeros(z0.shape), g_z1, torch.zeros_like(masks), torch.zeros_like(inverse_temperature))

    def add(self, part: _Part, lse: tuple[Tensor, Tensor | None], g_rows: Tensor, g_columns: Tensor | None) -> None:
        anchors, candidates = part.sides
        scores = part.scores
        g_anchors, g_candidates = scores.gradients(lse, g_rows, g_columns)
        g_raw, g_mask = self.z0 if self.z1 is None else self.z1, self.masks[part.k]
        along = candidates.unpack(g_candidates, scores.scale, g_raw, g_mask)
        if scores.symmetric:
            along = along / 2  # each pair stands there twice
        elif part.samples is None:
            anchors.unpack(g_anchors, scores.scale, self.z0, g_mask)
        else:
            own = torch.zeros_like(anchors.raw)
            anchors.unpack(g_anchors, scores.scale, own, g_mask)
            self.z0.index_add_(0, part.samples, own)
        self.inverse_temperature.add_(along)
