"""All pairs: InfoNCE under R masks, one after the other, without a matrix of scores in memory.

For each mask, ``pack`` writes the masked, normalised rows without the dimensions that it drops, so that the products
cost what the mask keeps; ``logsumexp`` goes through the scores tile by tile; ``gradient`` does so again and
multiplies the softmax with the rows of the other side; ``unpack`` takes that back to z and the mask.

Anchors and candidates are sorted by sample id, within their mask where each anchor has one. The positives of an
anchor are then an interval of candidates: no ids in the kernels, and only tiles on the way look for positives.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastGradients
from mast_ops.kernels.triton import contrast_kernels as kernels
from mast_ops.kernels.triton._launch import FEW, TILE, Launch, depth, launch, on, precision, readable, split

MOST_SPLITS = 8  # of the gradient of packed rows, which is as large as z


def forward(problem: Contrast) -> Contrasted:
    with on(problem.z0):
        plan = Plan(problem)
        anchors, candidates, tile = plan.anchors, plan.candidates, plan.launch("logsumexp")
        n, c, row_tiles = len(anchors.order), len(candidates.order), triton.cdiv(len(anchors.order), tile.rows)
        splits, span = split(c, tile.columns, row_tiles, FEW, MOST_SPLITS)
        row_lse, row_sum = plan.empty(2, problem.num_rows, splits, n).unbind()
        if problem.both_ways:
            column_lse, column_sum = plan.empty(2, plan.r, c).unbind()
            parts = plan.empty(2, row_tiles, c)
        for r in range(plan.r):
            plan.pack(r)
            group = r if problem.row is None else 0
            kernels.logsumexp[row_tiles, splits](
                anchors.packed, candidates.packed, anchors.bounds[r], plan.count[r], plan.low, plan.high, plan.itself,
                problem.inverse_temperature, row_lse[group], row_sum[group],
                *(parts if problem.both_ways else (None, None)), c, plan.width, span, n,
                precision(plan.dtype), tile.rows, tile.columns, plan.depth.step, plan.depth.is_whole, **tile.options,
            )  # fmt: skip
            if problem.both_ways:
                column_lse[r] = parts[0].logsumexp(0)
                column_sum[r] = parts[1].sum(0)
        rows = _losses(row_lse.logsumexp(1), row_sum.sum(1), plan.positives(0), anchors.order)
        if problem.both_ways:
            other = _losses(column_lse, column_sum, plan.positives(1), candidates.order)
        else:
            other = plan.empty(0, plan.r), plan.empty(0, plan.r)
        if problem.row is not None:
            rows, other = (rows[0].squeeze(1), rows[1].squeeze(1)), (plan.empty(0), plan.empty(0))
        return Contrasted((rows[0], other[0]), (rows[1], other[1]))


def backward(problem: Contrast, grads: Both, lse: Both) -> ContrastGradients:
    z0, z1, masks, inverse_temperature = problem[:4]
    with on(z0):
        plan = Plan(problem)
        # Weights of the scores in half precision must neither vanish nor overflow: the largest loss weighs 4096.
        peak = grads[0].abs().amax(0)
        if problem.both_ways:
            peak = torch.maximum(peak, grads[1].abs().amax(0))
        unit = peak.float().clamp_min(1e-30) / 4096
        rows = Direction.of(grads[0] / unit, lse[0], plan.positives(0), plan.anchors.order)
        other = rows if problem.symmetric else None
        if problem.both_ways:
            other = Direction.of(grads[1] / unit, lse[1], plan.positives(1), plan.candidates.order)

        factor = (unit * inverse_temperature).expand(plan.r)
        g_z0 = torch.zeros(z0.shape, dtype=torch.float32, device=z0.device)
        g_z1 = None if z1 is None else torch.zeros(z1.shape, dtype=torch.float32, device=z1.device)
        g_masks, alignment = plan.empty(*masks.shape), plan.empty(plan.r)
        for r in range(plan.r):
            plan.pack(r)
            g_masks[r], alignment[r] = plan.pull_back(r, False, (rows, other), factor[r], g_z0)
            if not problem.symmetric:
                target = g_z0 if g_z1 is None else g_z1
                g_masks[r] += plan.pull_back(r, True, (other, rows), factor[r], target)[0]
        # sum_ij W_ij cos_ij, from rows times gradients; the symmetric gradient holds each pair twice.
        g_inverse_temperature = (alignment * unit).sum() / (2 if problem.symmetric else 1)
        return ContrastGradients(g_z0, g_z1, g_masks, g_inverse_temperature)


def fused(problem: Contrast, weights: tuple[float, float]) -> tuple[Both, ContrastGradients]:
    """Scores are made twice: there is no room to keep them."""
    losses, lse = forward(problem)
    grads = torch.full_like(losses[0], weights[0]), torch.full_like(losses[1], weights[1])
    return losses, backward(problem, grads, lse)


@dataclass
class Direction:
    """One direction's losses, sorted, (R or 1, N): logsumexp in units of log2, gradient, its share a positive."""

    lse: Tensor
    pull: Tensor
    share: Tensor

    @classmethod
    def of(cls, grad: Tensor, lse: Tensor, positives: Tensor, order: Tensor) -> "Direction":
        lse, pull = (x.reshape(len(order), -1)[order].T.contiguous() for x in (lse * kernels.LOG2E.value, grad))
        return cls(lse, pull, pull / positives)

    def at(self, r: int) -> tuple[Tensor, Tensor, Tensor]:
        r = min(r, len(self.lse) - 1)
        return self.lse[r], self.pull[r], self.share[r]


@dataclass
class _Side:
    """Anchors or candidates: rows of z in sorted order, those of mask r at ``bounds[r]``, and room to pack them."""

    z: Tensor
    order: Tensor
    sample: Tensor
    bounds: Tensor
    packed: Tensor
    inverse_norm: Tensor


class Plan:
    """What forward and backward share: sorted rows, intervals of positives, kept dimensions of every mask."""

    def __init__(self, problem: Contrast, bias: Tensor | None = None) -> None:
        self.problem, self.bias = problem, bias
        self.masks, self.device = problem.masks.contiguous(), problem.z0.device
        self.r, self.d = self.masks.shape
        self.kept = (self.masks == 0).int().argsort(dim=1, stable=True).int()
        self.count = (self.masks != 0).sum(1, dtype=torch.int32)
        (z0,) = readable(problem.z0)
        self.dtype = z0.dtype
        self.depth = depth(self.dtype, self.d)
        self.width = triton.cdiv(self.d, self.depth.slice) * self.depth.slice

        self.anchors = self._side(z0, problem.sample0, problem.row)
        if problem.symmetric:
            self.candidates = self.anchors
        elif problem.z1 is None or problem.sample1 is None:
            self.candidates = self._side(z0, problem.sample0, None)
        else:
            (z1,) = readable(problem.z1)
            self.candidates = self._side(z1, problem.sample1, None)
        self.low, self.high = _interval(self.anchors.sample, self.candidates.sample)
        itself = problem.z1 is None
        self.itself = self.candidates.order.argsort()[self.anchors.order].int() if itself else None

    def _side(self, z: Tensor, sample: Tensor, row: Tensor | None) -> _Side:
        order = sample.argsort(stable=True)
        if row is None:
            # Made on the device: a copy from the host would wait for it.
            bounds = (torch.arange(2, device=self.device, dtype=torch.int32) * len(z)).expand(self.r, 2)
        else:
            order = order[row[order].argsort(stable=True)]
            edges = torch.arange(self.r + 1, device=self.device)
            starts = torch.searchsorted(row[order], edges, out_int32=True)
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

    def pack(self, r: int) -> None:
        tile = launch("pack", self.dtype)
        for side in [self.anchors] if self.problem.symmetric else [self.anchors, self.candidates]:
            kernels.pack[triton.cdiv(len(side.packed), tile.rows),](
                side.z, side.order, side.bounds[r], self.masks[r], self.kept[r], self.count[r],
                side.packed, side.inverse_norm, *side.z.stride(), self.d, self.width,
                TILE, self.depth.step, tile.rows, min(tile.columns, self.depth.step), **tile.options,
            )  # fmt: skip

    def pull_back(
        self,
        r: int,
        swapped: bool,
        directions: tuple[Direction | None, Direction | None],
        factor: Tensor,
        g_z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Adds to the gradient of one side's z, and returns that of mask r, and rows times gradients summed.

        ``directions``: the losses of that side, and those of the other.
        """
        side, across = (self.candidates, self.anchors) if swapped else (self.anchors, self.candidates)
        tile, pack = self.launch("gradient"), launch("pack", self.dtype)
        row_tiles, slices = triton.cdiv(len(side.order), tile.rows), self.width // self.depth.slice
        splits, span = split(len(across.order), tile.columns, row_tiles * slices, FEW, MOST_SPLITS)
        grad = self.empty(splits, *side.packed.shape)
        none = (None, None, None)
        kernels.gradient[row_tiles, slices, splits](
            side.packed, across.packed, side.bounds[r], across.bounds[r], self.count[r],
            self.low, self.high, self.itself, self.problem.inverse_temperature, self.bias,
            *(x for direction in directions for x in (none if direction is None else direction.at(r))), grad,
            self.width, span, grad[0].numel(),
            swapped, precision(self.dtype), tile.rows, tile.columns, *self.depth[:2], self.depth.is_whole,
            **tile.options,
        )  # fmt: skip
        blocks = triton.cdiv(len(side.order), pack.rows)
        g_mask, alignment = g_z.new_zeros(blocks, self.d), g_z.new_zeros(blocks)
        kernels.unpack[blocks,](
            side.z, side.order, side.bounds[r], self.masks[r], self.kept[r], self.count[r],
            side.packed, side.inverse_norm, grad, factor, g_z, g_mask, alignment,
            *side.z.stride(), self.d, self.width, grad[0].numel(), splits,
            pack.rows, min(pack.columns, self.depth.step), **pack.options,
        )  # fmt: skip
        return g_mask.sum(0), alignment.sum()


def _interval(sample: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each sample id stands ``among`` sorted ones: from, to."""
    low = torch.searchsorted(among, sample, out_int32=True)
    return low, torch.searchsorted(among, sample, right=True, out_int32=True)


def _losses(lse: Tensor, positive: Tensor, count: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """(R, N) sorted to (N, R) as given: losses, and logsumexps."""
    loss, lse = (lse - positive / count).T.contiguous(), lse.T.contiguous()
    return torch.empty_like(loss).index_copy_(0, order, loss), torch.empty_like(lse).index_copy_(0, order, lse)
