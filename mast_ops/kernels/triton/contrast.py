"""All pairs: InfoNCE under R masks, without a matrix of scores in memory.

``pack`` writes the masked, normalised rows without the dimensions that a mask drops, so that the products cost what it
keeps; ``logsumexp`` goes through the scores tile by tile; ``gradient`` does so again and multiplies the softmax with
the rows of the other side; ``align`` and ``unpack`` take that back to z and the masks. Each is one launch for all masks
whose packed rows fit a room of bounded size. Long rows are multiplied by the library, one mask after the other, see
:mod:`mast_ops.kernels.triton.wide`.

Anchors and candidates are sorted by sample id, within their mask where each anchor has one. The positives of an
anchor are then an interval of candidates: no ids in the kernels, and only tiles on the way look for positives.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mast_ops._precision import kept
from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastGradients, unit_of
from mast_ops.kernels.triton import contrast_kernels as kernels
from mast_ops.kernels.triton import packing_kernels
from mast_ops.kernels.triton._launch import FEW, PARTS, launch, on, precision, split
from mast_ops.kernels.triton._plan import Plan
from mast_ops.kernels.triton.wide import Tiles

MOST_SPLITS = 8  # of the gradient of packed rows, which is as large as z


def forward(problem: Contrast) -> Contrasted:
    with on(problem.z0):
        return _forward(Plan(problem))


def _forward(plan: Plan) -> Contrasted:
    problem, n, c = plan.problem, len(plan.anchors.order), len(plan.candidates.order)
    rows = plan.empty(2, problem.num_rows, n)
    columns = plan.empty(2, plan.r, c if problem.both_ways else 0)
    (_wide_statistics if plan.is_wide else _statistics)(plan, rows, columns)
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
                n, 0 if own else splits * n, None, None, precision(plan.dtype),
                tile.rows, tile.columns, block, plan.depth.step, plan.depth.is_whole, **tile.options,
            )  # fmt: skip
        if not own:
            _sum(plan, row_parts[:, :size], rows[:, masks])
        if column_parts is not None:
            _sum(plan, column_parts[:, :size], columns[:, masks])
    if own:  # each anchor is in one group or another
        _sum(plan, row_parts, rows)


def _wide_statistics(plan: Plan, rows: Tensor, columns: Tensor) -> None:
    """The same where products are the library's."""
    problem, tiles = plan.problem, Tiles(plan, plan.anchors, plan.candidates)
    n, c, tile = rows.shape[2], len(plan.candidates.order), tiles.tile
    row_parts = plan.empty(2, 1, tiles.parts, n)
    column_parts = plan.empty(2, 1, tiles.blocks, c) if problem.both_ways else None
    for masks in plan.groups():
        plan.pack(masks)
        for r in range(masks.start, masks.stop):
            if column_parts is not None:
                column_parts[1].zero_()
            for one in tiles.of(r - masks.start):
                kernels.logsumexp[tiles.grid(one)](
                    one.products, None, plan.anchors.bounds[r:], plan.count[r:],
                    plan.low, plan.high, plan.itself, problem.inverse_temperature,
                    *row_parts[:, 0, tiles.part(one) :], *((None, None) if column_parts is None else column_parts),
                    c, one.products.shape[1], tiles.span, 1, 0, 0, n, 0, *one.first, precision(plan.dtype),
                    tile.rows, tile.columns, plan.depth.step, plan.depth.step, False, **tile.options,
                )  # fmt: skip
            _sum(plan, row_parts, rows[:, r : r + 1])
            if column_parts is not None:
                _sum(plan, column_parts, columns[:, r : r + 1])


def _sum(plan: Plan, parts: Tensor, out: Tensor) -> None:
    """Over the programs that each saw a part: (2, R, programs, N) to (2, R, N)."""
    mass, lse = parts[0].sum(1), (parts[0] / kernels.LOG2E.value).logsumexp(1)
    torch.where(plan.fixed, mass, lse, out=out[0])
    torch.sum(parts[1], 1, out=out[1])


def backward(problem: Contrast, grads: Both, lse: Both) -> ContrastGradients:
    with on(problem.z0):
        return _pull(Plan(problem), grads, lse, torch.float32).gradients()


def fused(problem: Contrast, weights: tuple[float, float]) -> tuple[Both, ContrastGradients]:
    """Scores are made twice: there is no room to keep them. Gradients of z are in the dtype they are kept in."""
    with on(problem.z0):
        plan = Plan(problem)
        losses, lse = _forward(plan)
        of_rows, of_other = (x.new_full((), weight).expand_as(x) for x, weight in zip(losses, weights, strict=True))
        pull = _pull(plan, (of_rows, of_other), lse, kept(problem.z0.dtype))
        del lse  # as large as its sorted copy
        return losses, pull.gradients()


def _pull(plan: Plan, grads: Both, lse: Both, dtype: torch.dtype) -> "Pull":
    both_ways = plan.problem.both_ways
    peak = grads[0].abs().amax(0)
    if both_ways:
        peak = torch.maximum(peak, grads[1].abs().amax(0))
    unit = unit_of(peak)
    rows = Direction.of(plan, 0, grads[0] / unit, lse[0])
    other = rows if plan.problem.symmetric else None
    if both_ways:
        other = Direction.of(plan, 1, grads[1] / unit, lse[1])
    return Pull(plan, unit, (rows, other), dtype)


@dataclass
class Direction:
    """One direction's losses, sorted, (R or 1, N): logsumexp in units of log2, the gradient's share a positive; and how
    many positives each has, (N,), by which a share is a gradient.

    Where exponentials need no maximum, the gradient times exp(-logsumexp) in the place of that. Without positives: of
    a pairwise loss, whose gradient stands in both.
    """

    lse: Tensor
    share: Tensor
    positives: Tensor | None = None

    @classmethod
    def of(cls, plan: Plan, side: int, grad: Tensor, lse: Tensor) -> "Direction":
        order = (plan.candidates if side else plan.anchors).order
        lse, grad = (x.reshape(len(order), -1)[order].T.contiguous() for x in (lse * kernels.LOG2E.value, grad))
        positives = plan.positives(side).clamp_min(1)  # without any a share is not read, but the gradient is
        return cls(torch.where(plan.fixed, grad * torch.exp2(-lse), lse), grad / positives, positives)

    def of_masks(self, masks: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        own = len(self.lse) == 1
        return (self.lse, self.share, self.positives) if own else (self.lse[masks], self.share[masks], self.positives)

    @property
    def stride(self) -> int:
        """From one mask to the next."""
        return 0 if len(self.lse) == 1 else self.lse.shape[1]


class Pull:
    """Gradients on their way back to z and the masks.

    ``directions``: losses in units of ``unit``, (R,) or (), of anchors, and of candidates if they count.
    ``dtype``: of the gradients of z, wherever they come from one launch; else they are summed in float32 and then cast.
    """

    def __init__(
        self, plan: Plan, unit: Tensor, directions: tuple[Direction | None, Direction | None], dtype: torch.dtype
    ) -> None:
        self.plan, self.unit, self.directions, self.dtype = plan, unit, directions, dtype
        self.factor = (unit * plan.problem.inverse_temperature).expand(plan.r).contiguous()
        self.sides = [plan.anchors] if plan.problem.symmetric else [plan.anchors, plan.candidates]
        alone = plan.group == plan.r and (plan.problem.z1 is not None or len(self.sides) == 1)
        self.inside = plan.dtype if alone and dtype == plan.dtype else torch.float32
        # Of each side: the gradient of the masks, and rows times gradients.
        self.g_masks, self.alignment = (plan.empty(len(self.sides), plan.r, *rest) for rest in ((plan.d,), ()))

    def gradients(self) -> ContrastGradients:
        """One side after the other, all masks of each: the first side's sums are cast before the other's are made."""
        plan, problem = self.plan, self.plan.problem
        g_z: list[Tensor] = []
        for i, side in enumerate(self.sides):
            add = bool(i and problem.z1 is None)
            total = g_z.pop() if add else torch.empty(side.z.shape, dtype=self.inside, device=plan.device)
            for masks in plan.groups():
                plan.pack(masks)
                self._back(i, masks, total, add)
                add = True
            complete = problem.z1 is not None or side is self.sides[-1]
            g_z.append(total.to(self.dtype) if complete else total)
            del total
        # sum_ij W_ij cos_ij, from rows times gradients; the symmetric gradient holds each pair twice.
        g_inverse_temperature = (self.alignment[0] * self.unit).sum() / (2 if problem.symmetric else 1)
        g_z0, g_z1 = g_z[0], None if problem.z1 is None else g_z[1]
        return ContrastGradients(g_z0, g_z1, self.g_masks.sum(0), g_inverse_temperature)

    def _back(self, i: int, masks: slice, total: Tensor, add: bool) -> None:
        """Writes what these masks mean for one side's z to ``total``, or adds to it."""
        plan, swapped = self.plan, bool(i)
        side, across = (plan.candidates, plan.anchors) if swapped else (plan.anchors, plan.candidates)
        directions = self.directions[::-1] if swapped else self.directions
        size = masks.stop - masks.start
        if plan.is_wide:
            self._unpack(i, masks, self._wide(i, masks, directions), (total, add))
            return
        tile = plan.launch("gradient")
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
                *(0 if one is None else one.stride for one in directions), None, None, swapped, precision(plan.dtype),
                tile.rows, tile.columns, block, plan.depth.slice_of(block), plan.depth.step, plan.depth.is_whole,
                **tile.options,
            )  # fmt: skip
        self._unpack(i, masks, grad, (total, add))

    def _wide(self, i: int, masks: slice, directions: tuple["Direction | None", ...]) -> Tensor:
        """Gradients of packed rows where products are the library's: (masks, 1, rows, width)."""
        plan, swapped = self.plan, bool(i)
        side, across = (plan.candidates, plan.anchors) if swapped else (plan.anchors, plan.candidates)
        tiles, none = Tiles(plan, side, across), (None, None, None)
        grad, tile = plan.empty(masks.stop - masks.start, 1, *side.packed.shape[1:]), tiles.tile
        for r in range(masks.start, masks.stop):
            given = [x for one in directions for x in (none if one is None else one.of_masks(slice(r, r + 1)))]
            for one, weights in tiles.pull(r - masks.start, grad[r - masks.start, 0]):
                kernels.gradient[tiles.grid(one)](
                    one.products, None, side.bounds[r:], across.bounds[r:], plan.count[r:],
                    plan.low, plan.high, plan.itself, plan.problem.inverse_temperature, plan.bias, *given, weights,
                    one.products.shape[1], tiles.span, tiles.splits, across.padded, 0, 0, 0, *one.first,
                    swapped, precision(plan.dtype), tile.rows, tile.columns, plan.depth.step, plan.depth.step,
                    plan.depth.step, False, **tile.options,
                )  # fmt: skip
        return grad

    def _unpack(self, i: int, masks: slice, grad: Tensor, out: tuple[Tensor, bool]) -> None:
        plan, tile, (total, add) = self.plan, launch("unpack", self.plan.dtype), out
        side = self.sides[i]
        (size, splits), n = grad.shape[:2], len(side.order)
        blocks, columns = triton.cdiv(n, tile.rows), min(tile.columns, plan.depth.step)
        alignment, g_mask = grad.new_zeros(size, side.padded), plan.empty(size, blocks, plan.d)
        packing_kernels.align[blocks, size](
            side.bounds[masks], plan.count[masks], side.packed, grad, alignment,
            plan.depth.width, side.padded, splits, tile.rows, columns, **tile.options,
        )  # fmt: skip
        packing_kernels.unpack[blocks, triton.cdiv(plan.d, columns)](
            side.z, side.order, side.bounds[masks], plan.masks[masks], plan.slot[masks],
            side.packed, side.inverse_norm, grad, alignment, self.factor[masks], total, g_mask,
            *side.z.stride(), n, plan.d, plan.depth.width, side.padded, splits, size,
            add, tile.rows, columns, **tile.options,
        )  # fmt: skip
        torch.sum(g_mask, 1, out=self.g_masks[i, masks])
        torch.sum(alignment, 1, out=self.alignment[i, masks])


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
