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
from mast_ops.kernels.eager.contrast import EPS

_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 24}  # scores in a block
_CACHED = 1 << 24  # scores of one subspace that may be kept from the first pass to the second
_SPARSE = 0.75  # a mask with a smaller share of non-zero columns is packed without the others
_SAFE = 70.0  # up to this inverse temperature exp(score) and its sums stay well inside float32


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
    return grads.finish()


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
    return outs[0], outs[1], *grads.finish()


class _Side(NamedTuple):
    """Embeddings as one subspace sees them: unit length, (d, n), with what it takes to go back."""

    unit: Tensor
    inverse_norm: Tensor
    tiny: Tensor  # rows whose norm is below EPS: they are scaled, not normalised
    mask: Tensor
    columns: Tensor | None  # None: all D
    raw: Tensor  # the embeddings, (D, n)

    @classmethod
    def pack(cls, raw: Tensor, poison: Tensor, mask: Tensor) -> Self:
        kept = mask != 0
        columns = kept.nonzero()[:, 0] if kept.sum() < _SPARSE * len(mask) else None
        if columns is not None:
            mask = mask[columns]
        unit = cls._select(raw, columns) * mask[:, None]
        norm = torch.linalg.vector_norm(unit, dim=0) + poison
        inverse_norm = norm.clamp_min(EPS).reciprocal()
        return cls(unit.mul_(inverse_norm), inverse_norm, norm < EPS, mask, columns, raw)

    def only(self, samples: Tensor) -> Self:
        return self._replace(
            unit=self.unit[:, samples],
            inverse_norm=self.inverse_norm[samples],
            tiny=self.tiny[samples],
            raw=self.raw[:, samples],
        )

    def unpack(self, gradient: Tensor, g_raw: Tensor, g_mask: Tensor) -> None:
        """Add what a gradient of ``unit`` means for the embeddings and the mask. Overwrites it."""
        along = (self.unit * gradient).sum(0).masked_fill_(self.tiny, 0)
        gradient.sub_(along * self.unit).mul_(self.inverse_norm)
        g_own_mask = (gradient * self._select(self.raw, self.columns)).sum(1)
        gradient.mul_(self.mask[:, None])
        if self.columns is None:
            g_mask += g_own_mask
            g_raw += gradient
        else:
            g_mask.index_add_(0, self.columns, g_own_mask)
            g_raw.index_add_(0, self.columns, gradient)

    @staticmethod
    def _select(raw: Tensor, columns: Tensor | None) -> Tensor:
        return raw if columns is None else raw.index_select(0, columns)


class _Scores:
    """The score matrix of one subspace, a block of rows at a time; only the upper blocks where it is symmetric."""

    def __init__(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: float,
        pairs: tuple[Tensor, Tensor],
        own: Tensor | None,
        columns: bool,
        symmetric: bool,
    ) -> None:
        self.anchors, self.candidates, self.scale = anchors, candidates, scale
        self.own, self.columns, self.symmetric = own, columns, symmetric
        self.shape: tuple[int, int] = anchors.shape[1], candidates.shape[1]
        self.raised = scale <= _SAFE  # blocks then hold exp(score), and no maximum is needed
        self.row_count, self.column_count = (
            index.bincount(minlength=size).to(anchors.dtype) for index, size in zip(pairs, self.shape, strict=True)
        )
        height = min(max(_BLOCK.get(anchors.device.type, _BLOCK["cuda"]) // self.shape[1], 16), self.shape[0])
        self.rows = [slice(row, min(row + height, self.shape[0])) for row in range(0, self.shape[0], height)]
        bounds = torch.searchsorted(pairs[0], torch.tensor([r.start for r in self.rows[1:]], device=pairs[0].device))
        splits = [index.tensor_split(bounds.cpu()) for index in pairs]
        self.pairs = list(zip(*splits, strict=True))
        self.buffer = anchors.new_empty(height * self.shape[1])
        self.kept: list[Tensor] | None = None

    def keep(self) -> None:
        """Let the second pass find the blocks of the first, if they are few enough."""
        if sum(self._size(rows) for rows in self.rows) <= _CACHED:
            self.kept = []

    def statistics(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Losses of the rows and of the columns (None unless asked for), then their logsumexps."""
        lse = _LogSumExp(self.shape[0], self.anchors, self.raised)
        column_lse = _LogSumExp(self.shape[1], self.anchors, self.raised) if self.columns else None
        positive = self.anchors.new_zeros(self.shape[0])
        column_positive = self.anchors.new_zeros(self.shape[1])
        for index, rows in enumerate(self.rows):
            block, i, j = self._block(index)
            logits = block[i, j]
            positive.index_add_(0, i + rows.start, logits)
            block = self._raise(block)
            lse.add(rows, block, 1)
            if column_lse is not None:
                column_positive.index_add_(0, j, logits)
                column_lse.add(slice(None), block, 0)
            elif self.symmetric:
                below = j >= rows.stop - rows.start
                positive.index_add_(0, j[below] + rows.start, logits[below])
                lse.add(slice(rows.stop, None), block[:, rows.stop - rows.start :], 0)
            if self.kept is not None:
                self.kept.append(block)
        value = lse.value()
        loss = value - positive / self.row_count
        if column_lse is None:
            return loss, None, value, None
        column_value = column_lse.value()
        return loss, column_value - column_positive / self.column_count, value, column_value

    def gradients(
        self, lse: tuple[Tensor, Tensor | None], g_rows: Tensor, g_columns: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the packed anchors and candidates before the temperature; one tensor where symmetric."""
        g_anchors = torch.zeros_like(self.anchors)
        g_candidates = g_anchors if self.symmetric else torch.zeros_like(self.candidates)
        row = _Softmax(lse[0], g_rows, self.row_count, self.raised)
        column = row if self.symmetric else None
        if lse[1] is not None and g_columns is not None:
            column = _Softmax(lse[1], g_columns, self.column_count, self.raised)
        room = torch.empty_like(self.buffer)
        for index, rows in enumerate(self.rows):
            first = rows.start if self.symmetric else 0
            if self.kept is None:
                block, i, j = self._block(index)
                block = self._raise(block)
            else:
                block, i, j = self.kept[index], *self._local(index)
            weight = self._weight(block, row, column, rows, first, room)
            at_positives = row.at_positive[i + rows.start]
            if column is not None:
                at_positives = at_positives + column.at_positive[j + first]
            weight.index_put_((i, j), -at_positives, accumulate=True)
            g_anchors[:, rows].addmm_(self.candidates[:, first:], weight.T)
            past = rows.stop if self.symmetric else 0
            g_candidates[:, past:].addmm_(self.anchors[:, rows], weight[:, past - first :])
        return g_anchors, g_candidates

    def _weight(
        self, block: Tensor, row: "_Softmax", column: "_Softmax | None", rows: slice, first: int, room: Tensor
    ) -> Tensor:
        """Gradient of the losses by the scores, but for the positives. May overwrite the block."""
        if self.raised:
            if column is None:
                return block.mul_(row.factor[rows, None])
            both = room[: block.numel()].view_as(block)
            return block.mul_(torch.add(row.factor[rows, None], column.factor[first:], out=both))
        weight = torch.sub(block, row.lse[rows, None], out=room[: block.numel()].view_as(block))
        weight.exp_().mul_(row.gradient[rows, None])
        if column is None:
            return weight
        return weight.addcmul_(block.sub_(column.lse[first:]).exp_(), column.gradient[first:])

    def _size(self, rows: slice) -> int:
        height: int = rows.stop - rows.start
        return height * (self.shape[1] - (rows.start if self.symmetric else 0))

    def _block(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a block of rows, and where in it the positives are."""
        rows = self.rows[index]
        first = rows.start if self.symmetric else 0
        size = self._size(rows)
        flat = self.buffer[:size] if self.kept is None else self.buffer.new_empty(size)
        block = flat.view(rows.stop - rows.start, -1)
        block.addmm_(self.anchors[:, rows].T, self.candidates[:, first:], beta=0, alpha=self.scale)
        if self.own is not None:
            block.scatter_(1, self.own[rows, None] - first, -torch.inf)
        return block, *self._local(index)

    def _local(self, index: int) -> tuple[Tensor, Tensor]:
        i, j = self.pairs[index]
        if self.symmetric:  # the others stand in an earlier block, mirrored
            upper = j >= self.rows[index].start
            i, j = i[upper], j[upper] - self.rows[index].start
        return i - self.rows[index].start, j

    def _raise(self, block: Tensor) -> Tensor:
        return block.exp_() if self.raised else block


class _LogSumExp:
    """Running logsumexp of many rows, of blocks of scores, or of blocks of exp(score)."""

    def __init__(self, size: int, like: Tensor, raised: bool) -> None:
        self.raised = raised
        self.sum = like.new_zeros(size)
        self.top = like.new_zeros(size) if raised else like.new_full((size,), torch.finfo(like.dtype).min)

    def add(self, where: slice, block: Tensor, dim: int) -> None:
        if block.numel() == 0:
            return
        if self.raised:
            self.sum[where] += block.sum(dim)
            return
        top = torch.maximum(self.top[where], block.amax(dim))
        new = (block - top.unsqueeze(dim)).exp_().sum(dim)
        self.sum[where] = self.sum[where] * (self.top[where] - top).exp_() + new
        self.top[where] = top

    def value(self) -> Tensor:
        return self.top + self.sum.log()


class _Softmax:
    """What turns scores, or exp(scores), into the gradient of the losses of one direction."""

    def __init__(self, lse: Tensor, gradient: Tensor, count: Tensor, raised: bool) -> None:
        self.lse, self.gradient = lse, gradient
        self.factor = gradient * (-lse).exp_() if raised else gradient
        self.at_positive = gradient / count


class _Part(NamedTuple):
    """One subspace's share of the work: which samples, which mask, and the packed sides."""

    k: int
    samples: Tensor | None
    scores: _Scores
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
    raw0 = z0.to(wide(z0.dtype)).T.contiguous()
    raw1 = raw0 if z1 is None else z1.to(raw0.dtype).T.contiguous()
    poison0 = (0 * raw0).sum(0)  # NaN where a sample is not finite, were it in a column that no mask keeps
    poison1 = poison0 if z1 is None else (0 * raw1).sum(0)
    sample1 = sample0 if sample1 is None else sample1
    everyone = torch.arange(len(z0), device=z0.device)
    groups = [(k, everyone) for k in range(len(masks))]
    if subspace is not None:
        split = torch.split(subspace.argsort(stable=True), subspace.bincount().tolist())
        groups = [(k, samples) for k, samples in enumerate(split) if len(samples)]
    for k, samples in groups:
        candidates = _Side.pack(raw1, poison1, masks[k])
        if z1 is None:
            anchors = candidates if subspace is None else candidates.only(samples)
        elif subspace is None:
            anchors = _Side.pack(raw0, poison0, masks[k])
        else:
            anchors = _Side.pack(raw0[:, samples], poison0[samples], masks[k])
        pairs = _positives(sample0[samples], sample1, samples if z1 is None else None)
        symmetric = z1 is None and subspace is None
        scores = _Scores(
            anchors.unit, candidates.unit, scale, pairs, samples if z1 is None else None, columns, symmetric
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
    """Gradients so far; those of the embeddings as (D, N)."""

    z0: Tensor
    z1: Tensor | None
    masks: Tensor
    inverse_temperature: Tensor

    @classmethod
    def zeros(cls, z0: Tensor, z1: Tensor | None, masks: Tensor, inverse_temperature: Tensor) -> Self:
        new = torch.zeros(0, dtype=wide(z0.dtype), device=z0.device)
        g_z1 = None if z1 is None else new.new_zeros(z1.shape[::-1])
        return cls(new.new_zeros(z0.shape[::-1]), g_z1, torch.zeros_like(masks), torch.zeros_like(inverse_temperature))

    def add(self, part: _Part, lse: tuple[Tensor, Tensor | None], g_rows: Tensor, g_columns: Tensor | None) -> None:
        anchors, candidates = part.sides
        scores = part.scores
        g_anchors, g_candidates = scores.gradients(lse, g_rows, g_columns)
        along = (anchors.unit * g_anchors).sum()
        self.inverse_temperature.add_(along / 2 if scores.symmetric else along)
        g_raw = self.z0 if self.z1 is None else self.z1
        candidates.unpack(g_candidates.mul_(scores.scale), g_raw, self.masks[part.k])
        if scores.symmetric:
            return
        g_anchors.mul_(scores.scale)
        if part.samples is None:
            anchors.unpack(g_anchors, self.z0, self.masks[part.k])
        else:
            own = torch.zeros_like(anchors.raw)
            anchors.unpack(g_anchors, own, self.masks[part.k])
            self.z0.index_add_(1, part.samples, own)

    def finish(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        g_z1 = None if self.z1 is None else self.z1.T.contiguous()
        return self.z0.T.contiguous(), g_z1, self.masks, self.inverse_temperature
