"""All pairs: InfoNCE in K subspaces, one after the other, without a matrix of scores in memory.

For each subspace, ``pack`` writes the masked, normalised rows without the columns that the mask drops, so that the
products cost what the mask keeps; ``logsumexp`` goes through the scores tile by tile; ``gradient`` does so again and
multiplies the softmax with the rows of the other side; ``unpack`` takes that back to z and the mask.

Anchors and candidates are sorted by sample id, within their subspace where each anchor has one. The positives of an
anchor are then an interval of candidates: no ids in the kernels, and only tiles on the way look for positives.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mast_ops.kernels.triton import contrast_kernels as kernels
from mast_ops.kernels.triton._launch import FEW, TILE, Launch, depth, launch, on, precision, readable, split

_MOST_SPLITS = 8  # of the gradient of packed rows, which is as large as z


def forward(
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None = None,
    subspace: Tensor | None = None,
    columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(rows, columns, row_lse, column_lse): the losses of :func:`mast_ops.kernels.eager.contrast.contrast`,
    and the logsumexp in each of them."""
    with on(z0):
        plan = _Plan(z0, z1, masks, sample0, sample1, subspace)
        anchors, candidates, tile = plan.anchors, plan.candidates, plan.launch("logsumexp")
        n, c, row_tiles = len(anchors.order), len(candidates.order), triton.cdiv(len(anchors.order), tile.rows)
        splits, span = split(c, tile.columns, row_tiles, FEW, _MOST_SPLITS)
        row_lse, row_sum = plan.empty(2, plan.k if subspace is None else 1, splits, n).unbind()
        if columns:
            column_lse, column_sum = plan.empty(2, plan.k, c).unbind()
            parts = plan.empty(2, row_tiles, c)
        for k in range(plan.k):
            plan.pack(k)
            group = k if subspace is None else 0
            kernels.logsumexp[row_tiles, splits](
                anchors.packed, candidates.packed, anchors.bounds[k], plan.count[k], plan.low, plan.high, plan.itself,
                inverse_temperature, row_lse[group], row_sum[group], *(parts if columns else (None, None)),
                c, plan.width, span, n,
                precision(plan.dtype), tile.rows, tile.columns, plan.depth.step, plan.depth.is_whole, **tile.options,
            )  # fmt: skip
            if columns:
                column_lse[k] = parts[0].logsumexp(0)
                column_sum[k] = parts[1].sum(0)
        rows = _losses(row_lse.logsumexp(1), row_sum.sum(1), plan.positives(0), anchors.order)
        if columns:
            other = _losses(column_lse, column_sum, plan.positives(1), candidates.order)
        else:
            other = plan.empty(0, plan.k), plan.empty(0, plan.k)
        if subspace is not None:
            return rows[0].squeeze(1), plan.empty(0), rows[1].squeeze(1), plan.empty(0)
        return rows[0], other[0], rows[1], other[1]


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
    sample1: Tensor | None = None,
    subspace: Tensor | None = None,
    columns: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of z0, z1, masks and inverse_temperature, in float32."""
    with on(z0):
        plan = _Plan(z0, z1, masks, sample0, sample1, subspace)
        # Weights of the scores in half precision must neither vanish nor overflow: the largest loss weighs 4096.
        peak = g_rows.abs().amax(0)
        if columns:
            peak = torch.maximum(peak, g_columns.abs().amax(0))
        unit = peak.float().clamp_min(1e-30) / 4096
        rows = _Direction.of(g_rows / unit, row_lse, plan.positives(0), plan.anchors.order)
        other = rows if plan.symmetric else None
        if columns:
            other = _Direction.of(g_columns / unit, column_lse, plan.positives(1), plan.candidates.order)

        factor = (unit * inverse_temperature).expand(plan.k)
        g_z0 = torch.zeros(z0.shape, dtype=torch.float32, device=z0.device)
        g_z1 = None if z1 is None else torch.zeros(z1.shape, dtype=torch.float32, device=z1.device)
        g_masks, alignment = plan.empty(*masks.shape), plan.empty(plan.k)
        for k in range(plan.k):
            plan.pack(k)
            g_masks[k], alignment[k] = plan.pull_back(k, False, rows, other, inverse_temperature, factor, g_z0)
            if not plan.symmetric:
                target = g_z0 if g_z1 is None else g_z1
                g_masks[k] += plan.pull_back(k, True, other, rows, inverse_temperature, factor, target)[0]
        # sum_ij W_ij cos_ij, from rows times gradients; the symmetric gradient holds each pair twice.
        g_inverse_temperature = (alignment * unit).sum() / (2 if plan.symmetric else 1)
        return g_z0, g_z1, g_masks, g_inverse_temperature


def fused(
    row_weight: float,
    column_weight: float,
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None = None,
    subspace: Tensor | None = None,
    columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Losses, and the gradients of their weighted sum. Scores are made twice: there is no room to keep them."""
    inputs = (z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns)
    rows, other, row_lse, column_lse = forward(*inputs)
    weights = torch.full_like(rows, row_weight), torch.full_like(other, column_weight)
    g_z0, g_z1, g_masks, g_inverse = backward(weights[0], weights[1], row_lse, column_lse, *inputs)
    return rows, other, g_z0, g_z1, g_masks, g_inverse


@dataclass
class _Direction:
    """One direction's losses, sorted, (K or 1, N): logsumexp in units of log2, gradient, its share a positive."""

    lse: Tensor
    pull: Tensor
    share: Tensor

    @classmethod
    def of(cls, grad: Tensor, lse: Tensor, positives: Tensor, order: Tensor) -> "_Direction":
        lse, pull = (x.reshape(len(order), -1)[order].T.contiguous() for x in (lse * kernels.LOG2E.value, grad))
        return cls(lse, pull, pull / positives)

    def at(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        k = min(k, len(self.lse) - 1)
        return self.lse[k], self.pull[k], self.share[k]


@dataclass
class _Side:
    """Anchors or candidates: rows of z in sorted order, those of subspace k at ``bounds[k]``, and room to pack them."""

    z: Tensor
    order: Tensor
    sample: Tensor
    bounds: Tensor
    packed: Tensor
    inverse_norm: Tensor


class _Plan:
    """What forward and backward share: sorted rows, intervals of positives, kept columns of every mask."""

    def __init__(
        self,
        z0: Tensor,
        z1: Tensor | None,
        masks: Tensor,
        sample0: Tensor,
        sample1: Tensor | None,
        subspace: Tensor | None,
    ) -> None:
        alone = z1 is None or sample1 is None
        self.masks, self.device = masks.contiguous(), z0.device
        self.k, self.d = masks.shape
        self.kept = (self.masks == 0).int().argsort(dim=1, stable=True).int()
        self.count = (self.masks != 0).sum(1, dtype=torch.int32)
        (z0,) = readable(z0)
        self.dtype = z0.dtype
        self.depth = depth(self.dtype, self.d)
        self.width = triton.cdiv(self.d, self.depth.slice) * self.depth.slice

        self.anchors = self._side(z0, sample0, subspace)
        self.symmetric = alone and subspace is None
        if self.symmetric:
            self.candidates = self.anchors
        elif z1 is None or sample1 is None:
            self.candidates = self._side(z0, sample0, None)
        else:
            (z1,) = readable(z1)
            self.candidates = self._side(z1, sample1, None)
        self.low, self.high = _interval(self.anchors.sample, self.candidates.sample)
        self.itself = self.candidates.order.argsort()[self.anchors.order].int() if alone else None

    def _side(self, z: Tensor, sample: Tensor, subspace: Tensor | None) -> _Side:
        order = sample.argsort(stable=True)
        if subspace is None:
            # Made on the device: a copy from the host would wait for it.
            bounds = (torch.arange(2, device=self.device, dtype=torch.int32) * len(z)).expand(self.k, 2)
        else:
            order = order[subspace[order].argsort(stable=True)]
            edges = torch.arange(self.k + 1, device=self.device)
            starts = torch.searchsorted(subspace[order], edges, out_int32=True)
            bounds = torch.stack([starts[:-1], starts[1:]], 1)
        padded = triton.cdiv(len(z), TILE) * TILE
        return _Side(z, order, sample[order], bounds, z.new_empty(padded, self.width), self.empty(padded))

    def launch(self, kernel: str) -> Launch:
        return launch(kernel + ("_whole" if self.depth.is_whole else ""), self.dtype)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def positives(self, side: int) -> Tensor:
        """How many positives each anchor has, or each candidate."""
        if side:
            low, high = _interval(self.candidates.sample, self.anchors.sample)
            return high - low
        return self.high - self.low - int(self.itself is not None)

    def pack(self, k: int) -> None:
        tile = launch("pack", self.dtype)
        for side in [self.anchors] if self.symmetric else [self.anchors, self.candidates]:
            kernels.pack[triton.cdiv(len(side.packed), tile.rows),](
                side.z, side.order, side.bounds[k], self.masks[k], self.kept[k], self.count[k],
                side.packed, side.inverse_norm, *side.z.stride(), self.d, self.width,
                TILE, self.depth.step, tile.rows, min(tile.columns, self.depth.step), **tile.options,
            )  # fmt: skip

    def pull_back(
        self,
        k: int,
        swapped: bool,
        rows: _Direction | None,
        columns: _Direction | None,
        inverse_temperature: Tensor,
        factor: Tensor,
        g_z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Adds to the gradient of one side's z, and returns that of mask k, and rows times gradients summed."""
        side, across = (self.candidates, self.anchors) if swapped else (self.anchors, self.candidates)
        tile, pack = self.launch("gradient"), launch("pack", self.dtype)
        row_tiles, slices = triton.cdiv(len(side.order), tile.rows), self.width // self.depth.slice
        splits, span = split(len(across.order), tile.columns, row_tiles * slices, FEW, _MOST_SPLITS)
        grad = self.empty(splits, *side.packed.shape)
        none = (None, None, None)
        kernels.gradient[row_tiles, slices, splits](
            side.packed, across.packed, side.bounds[k], across.bounds[k], self.count[k],
            self.low, self.high, self.itself, inverse_temperature,
            *(none if rows is None else rows.at(k)), *(none if columns is None else columns.at(k)), grad,
            self.width, span, grad[0].numel(),
            swapped, precision(self.dtype), tile.rows, tile.columns, *self.depth[:2], self.depth.is_whole,
            **tile.options,
        )  # fmt: skip
        blocks = triton.cdiv(len(side.order), pack.rows)
        g_mask, alignment = g_z.new_zeros(blocks, self.d), g_z.new_zeros(blocks)
        kernels.unpack[blocks,](
            side.z, side.order, side.bounds[k], self.masks[k], self.kept[k], self.count[k],
            side.packed, side.inverse_norm, grad, factor[k], g_z, g_mask, alignment,
            *side.z.stride(), self.d, self.width, grad[0].numel(), splits,
            pack.rows, min(pack.columns, self.depth.step), **pack.options,
        )  # fmt: skip
        return g_mask.sum(0), alignment.sum()


def _interval(sample: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each sample id stands ``among`` sorted ones: from, to."""
    low = torch.searchsorted(among, sample, out_int32=True)
    return low, torch.searchsorted(among, sample, right=True, out_int32=True)


def _losses(lse: Tensor, positive: Tensor, count: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """(K, N) sorted to (N, K) as given: losses, and logsumexps."""
    loss, lse = (lse - positive / count).T.contiguous(), lse.T.contiguous()
    return torch.empty_like(loss).index_copy_(0, order, loss), torch.empty_like(lse).index_copy_(0, order, lse)
