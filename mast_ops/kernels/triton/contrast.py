"""All pairs: InfoNCE under R masks, without a matrix of scores in memory.

``pack`` writes the masked, normalised rows without the dimensions that a mask drops, so that the products cost what it
keeps; ``logsumexp`` goes through the scores tile by tile; ``gradient`` does so again and multiplies the softmax with
the rows of the other side; ``align`` and ``unpack`` take that back to z and the masks. Each is one launch for all masks
whose packed rows fit a room of bounded size.

Anchors and candidates are sorted by sample id, within their mask where each anchor has one. The positives of an
anchor are then an interval of candidates: no ids in the kernels, and only tiles on the way look for positives.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mast_ops._precision import kept
from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastGradients
from mast_ops.kernels.triton import contrast_kernels as kernels
from mast_ops.kernels.triton._launch import FEW, PARTS, launch, on, precision, split
from mast_ops.kernels.triton._plan import Plan, Side

MOST_SPLITS = 8  # of the gradient of packed rows, which is as large as z


def forward(problem: Contrast) -> Contrasted:
    with on(problem.z0):
        plan = Plan(problem)
        n, c = len(plan.anchors.order), len(plan.candidates.order)
        rows = plan.empty(2, problem.num_rows, n)
        columns = plan.empty(2, plan.r, c if problem.both_ways else 0)
        _statistics(plan, rows, columns)
        of_rows = _losses(plan, rows, 0)
        none = plan.empty(0, plan.r), plan.empty(0, plan.r)
        other = _losses(plan, columns, 1) if problem.both_ways else none
        if problem.row is not None:
            of_rows, other = (of_rows[0].squeeze(1), of_rows[1].squeeze(1)), (plan.empty(0), plan.empty(0))
        return Contrasted((of_rows[0], other[0]), (of_rows[1], other[1]))


def _statistics(plan: Plan, rows: Tensor, columns: Tensor) -> None:
    """Logsumexps of the scores, or sums of exponentials, and sums of positives: (2, R or 1, N) and (2, R, C or 0)."""
    problem, tile = plan.problem, plan.launch("logsumexp")
    n, c, both_ways, own = rows.shape[2], len(plan.candidates.order), problem.both_ways, problem.row is not None
    row_tiles = triton.cdiv(n, tile.rows)
    tiles = triton.cdiv(row_tiles, max(1, PARTS // plan.group)) if both_ways else 1
    programs = triton.cdiv(row_tiles, tiles)
    busy = programs * plan.group if both_ways else plan.row_tiles(plan.anchors, tile.rows)
    splits, span = split(c, tile.columns, busy, FEW, MOST_SPLITS)
    row_parts = plan.empty(2, 1 if own else plan.group, splits, n)
    column_parts = plan.empty(2, plan.group, programs, c) if both_ways else None
    for masks in plan.groups():
        plan.pack(masks)
        size = masks.stop - masks.start
        if column_parts is not None:
            column_parts[1].zero_()
        for block in plan.depth.blocks:
            kernels.logsumexp[programs, splits, size](
                plan.anchors.packed, plan.candidates.packed, plan.anchors.bounds[masks], plan.count[masks],
                plan.low, plan.high, plan.itself, problem.inverse_temperature,
                *row_parts, *((None, None) if column_parts is None else column_parts),
                c, plan.depth.width, span, tiles, plan.anchors.padded, plan.candidates.padded,
                n, 0 if own else splits * n, precision(plan.dtype),
                tile.rows, tile.columns, block, plan.depth.step, plan.depth.is_whole, **tile.options,
            )  # fmt: skip
        if not own:
            rows[:, masks] = _sum(plan, row_parts[:, :size])
        if column_parts is not None:
            columns[:, masks] = _sum(plan, column_parts[:, :size])
    if own:  # each anchor is in one group or another
        rows.copy_(_sum(plan, row_parts))


def _sum(plan: Plan, parts: Tensor) -> Tensor:
    """Over the programs that each saw a part: (2, R, programs, N) to (2, R, N)."""
    mass, lse = parts[0].sum(1), (parts[0] / kernels.LOG2E.value).logsumexp(1)
    return torch.stack([torch.where(plan.fixed, mass, lse), parts[1].sum(1)])


def backward(problem: Contrast, grads: Both, lse: Both) -> ContrastGradients:
    return _backward(problem, grads, lse, torch.float32)


def fused(problem: Contrast, weights: tuple[float, float]) -> tuple[Both, ContrastGradients]:
    """Scores are made twice: there is no room to keep them. Gradients of z are in the dtype they are kept in."""
    losses, lse = forward(problem)
    grads = torch.full_like(losses[0], weights[0]), torch.full_like(losses[1], weights[1])
    return losses, _backward(problem, grads, lse, kept(problem.z0.dtype))


def _backward(problem: Contrast, grads: Both, lse: Both, dtype: torch.dtype) -> ContrastGradients:
    z1, masks, inverse_temperature = problem[1:4]
    with on(problem.z0):
        plan = Plan(problem)
        # Weights of the scores in half precision must neither vanish nor overflow: the largest loss weighs 4096.
        peak = grads[0].abs().amax(0)
        if problem.both_ways:
            peak = torch.maximum(peak, grads[1].abs().amax(0))
        unit = peak.float().clamp_min(1e-30) / 4096
        rows = Direction.of(plan, 0, grads[0] / unit, lse[0])
        other = rows if problem.symmetric else None
        if problem.both_ways:
            other = Direction.of(plan, 1, grads[1] / unit, lse[1])

        pull = Pull(plan, (unit * inverse_temperature).expand(plan.r).contiguous(), dtype)
        g_masks, alignment = plan.empty(*masks.shape), plan.empty(plan.r)
        for group in plan.groups():
            plan.pack(group)
            g_masks[group], alignment[group] = pull.back(group, False, (rows, other))
            if not problem.symmetric:
                g_masks[group] += pull.back(group, True, (other, rows))[0]
        # sum_ij W_ij cos_ij, from rows times gradients; the symmetric gradient holds each pair twice.
        g_inverse_temperature = (alignment * unit).sum() / (2 if problem.symmetric else 1)
        g_z0, g_z1 = pull.gradients()
        return ContrastGradients(g_z0, None if z1 is None else g_z1, g_masks, g_inverse_temperature)


@dataclass
class Direction:
    """One direction's losses, sorted, (R or 1, N): logsumexp in units of log2, gradient, its share a positive.

    Where exponentials need no maximum, the gradient holds that of the logsumexp.
    """

    lse: Tensor
    pull: Tensor
    share: Tensor

    @classmethod
    def of(cls, plan: Plan, side: int, grad: Tensor, lse: Tensor) -> "Direction":
        order = (plan.candidates if side else plan.anchors).order
        lse, grad = (x.reshape(len(order), -1)[order].T.contiguous() for x in (lse * kernels.LOG2E.value, grad))
        return cls(lse, torch.where(plan.fixed, grad * torch.exp2(-lse), grad), grad / plan.positives(side))

    def of_masks(self, masks: slice) -> tuple[Tensor, Tensor, Tensor]:
        own = len(self.lse) == 1
        return (self.lse, self.pull, self.share) if own else (self.lse[masks], self.pull[masks], self.share[masks])

    @property
    def stride(self) -> int:
        """From one mask to the next."""
        return 0 if len(self.lse) == 1 else self.lse.shape[1]


class Pull:
    """Gradients on their way back to z and the masks.

    ``dtype``: of those of z, wherever they come from one launch; else they are summed in float32 and then cast.
    """

    def __init__(self, plan: Plan, factor: Tensor, dtype: torch.dtype) -> None:
        self.plan, self.factor, self.dtype = plan, factor, dtype
        alone = plan.group == plan.r and not (plan.problem.z1 is None and plan.problem.row is not None)
        self.inside = plan.dtype if alone and dtype == plan.dtype else torch.float32
        self.sums: dict[int, Tensor] = {}

    def back(
        self, masks: slice, swapped: bool, directions: tuple[Direction | None, Direction | None]
    ) -> tuple[Tensor, Tensor]:
        """Adds to the gradient of one side's z, and returns those of the masks, and rows times gradients summed.

        ``directions``: the losses of that side, and those of the other.
        """
        plan = self.plan
        side, across = (plan.candidates, plan.anchors) if swapped else (plan.anchors, plan.candidates)
        tile, size = plan.launch("gradient"), masks.stop - masks.start
        row_tiles, slices = triton.cdiv(len(side.order), tile.rows), plan.depth.width // plan.depth.slice
        busy = plan.row_tiles(side, tile.rows) * slices
        splits, span = split(len(across.order), tile.columns, busy, FEW, MOST_SPLITS)
        grad = plan.empty(size, splits, *side.packed.shape[1:])
        none = (None, None, None)
        for block in plan.depth.blocks:
            kernels.gradient[row_tiles, slices * splits, size](
                side.packed, across.packed, side.bounds[masks], across.bounds[masks], plan.count[masks],
                plan.low, plan.high, plan.itself, plan.problem.inverse_temperature, plan.bias,
                *(x for one in directions for x in (none if one is None else one.of_masks(masks))), grad,
                plan.depth.width, span, splits, side.padded, across.padded,
                *(0 if one is None else one.stride for one in directions), swapped, precision(plan.dtype),
                tile.rows, tile.columns, block, plan.depth.slice_of(block), plan.depth.step, plan.depth.is_whole,
                **tile.options,
            )  # fmt: skip
        return self._unpack(side, int(swapped and plan.problem.z1 is not None), masks, grad)

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Of z0 and z1."""
        z0, z1 = (self.sums[i].to(self.dtype) if i in self.sums else None for i in range(2))
        assert z0 is not None
        return z0, z1

    def _unpack(self, side: Side, i: int, masks: slice, grad: Tensor) -> tuple[Tensor, Tensor]:
        plan, tile = self.plan, launch("unpack", self.plan.dtype)
        (size, splits), n = grad.shape[:2], len(side.order)
        blocks, columns = triton.cdiv(n, tile.rows), min(tile.columns, plan.depth.step)
        alignment, g_mask = grad.new_zeros(size, side.padded), plan.empty(size, blocks, plan.d)
        kernels.align[blocks, size](
            side.bounds[masks], plan.count[masks], side.packed, grad, alignment,
            plan.depth.width, side.padded, splits, tile.rows, columns, **tile.options,
        )  # fmt: skip
        add = i in self.sums
        if not add:
            self.sums[i] = torch.empty(side.z.shape, dtype=self.inside, device=plan.device)
        kernels.unpack[blocks, triton.cdiv(plan.d, columns)](
            side.z, side.order, side.bounds[masks], plan.masks[masks], plan.slot[masks],
            side.packed, side.inverse_norm, grad, alignment, self.factor[masks], self.sums[i], g_mask,
            *side.z.stride(), n, plan.d, plan.depth.width, side.padded, splits, size,
            add, tile.rows, columns, **tile.options,
        )  # fmt: skip
        return g_mask.sum(1), alignment.sum(1)


def _losses(plan: Plan, sums: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(2, R, N) sorted to (N, R) as given: losses, and logsumexps."""
    order, positive = (plan.candidates if side else plan.anchors).order, sums[1] / plan.positives(side)
    # Where one score is all of the sum, the logsumexp is that score, to the last digit: the logarithm of a large
    # number is not, and a gradient that is the difference of two numbers alike would be left with the rounding.
    shift = torch.fmax(positive, sums[0].log2() - 40).clamp_min(-2 * kernels.RANGE.value)
    lse = (shift + (sums[0] * (-shift).exp2()).log2()) / kernels.LOG2E.value
    lse, positive = torch.where(plan.fixed, lse, sums[0]), positive / kernels.LOG2E.value
    loss, lse = (lse - positive).T.contiguous(), lse.T.contiguous()
    return torch.empty_like(loss).index_copy_(0, order, loss), torch.empty_like(lse).index_copy_(0, order, lse)
