"""All pairs, each by itself: the pairwise sigmoid under R masks, without a matrix of scores in memory.

Packing, and the gradient with sigmoids in place of softmaxes, are those of :mod:`mast_ops.kernels.triton.contrast`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops._precision import kept
from mast_ops.kernels.contract import Contrast, ContrastGradients, unit_of
from mast_ops.kernels.triton._launch import FEW, on, precision, split
from mast_ops.kernels.triton._plan import Plan
from mast_ops.kernels.triton.contrast import MOST_SPLITS, Direction, Pull
from mast_ops.kernels.triton.contrast_kernels import LOG2E, _elsewhere, _given, _scores
from mast_ops.kernels.triton.packing_kernels import UNIT, _depth, _kernel, _segment
from mast_ops.kernels.triton.wide import Tiles


@_kernel
def _sums(
    a, b, bounds, count, low, high, inverse_temperature, bias, row_lse, row_sum,
    C, width, span, a_rows, b_rows, part, of_rows, first_row, first_column, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LEAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of anchors against a span of candidates: sums of losses and of slopes.

    Without ``b`` of products in ``a``, as in :func:`mast_ops.kernels.triton.contrast_kernels.logsumexp`.
    """
    r = tl.program_id(2)
    first, total = _segment(bounds, r)
    start_m = tl.program_id(0) * BLOCK_M
    if b is None:
        start_m += first_row
    if (start_m >= total) | _elsewhere(count + r, BLOCK_D, LEAST, WHOLE):
        return
    rows = start_m + tl.arange(0, BLOCK_M)
    live = rows < total
    place = first + tl.minimum(rows, total - 1)
    begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
    depth = _depth(count + r, BLOCK_D)
    scale, offset = tl.load(inverse_temperature) / (UNIT * UNIT), tl.load(bias)
    if b is not None:
        inner = tl.arange(0, BLOCK_D)
        a += (r.to(tl.int64) * a_rows + rows)[:, None] * width + inner[None, :]
        b += r.to(tl.int64) * b_rows * width + inner[None, :]
        if WHOLE:
            a_tile = tl.load(a)
    losses = tl.zeros((BLOCK_M,), tl.float32)
    slopes = tl.zeros((BLOCK_M,), tl.float32)
    span_start = tl.program_id(1) * span
    span_stop = tl.minimum(span_start + span, C)
    if b is None:
        span_stop = first_column + tl.minimum(tl.minimum(span_start + span, width), C - first_column)
        span_start += first_column
    for start_n in range(span_start, span_stop, BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        if b is None:
            x = tl.load(_given(a, rows - first_row, columns - first_column, width)) * scale + offset
        else:
            b_place = b + columns.to(tl.int64)[:, None] * width
            if WHOLE:
                x = tl.dot(a_tile, tl.trans(tl.load(b_place)), input_precision=PRECISION) * scale + offset
            else:
                x = _scores(a, b_place, depth, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * scale + offset
        sign = tl.where((columns[None, :] >= begin) & (columns[None, :] < end), -1.0, 1.0)
        x *= sign
        # softplus without overflow; small ones by their exponential alone: 1 + small would lose it.
        small = tl.exp2(-tl.abs(x) * LOG2E)
        tail = tl.where(small < 1e-4, small * (1 - 0.5 * small), tl.log2(1 + small) / LOG2E)
        slope = tl.where(x >= 0, 1.0, small) / (1 + small)
        inside = (columns < C)[None, :]
        losses += tl.sum(tl.where(inside, tl.where(x > 0, x, 0.0) + tail + 0 * x, 0.0), 1)  # a NaN stays one
        slopes += tl.sum(tl.where(inside, sign * slope, 0.0), 1)
    place = r * of_rows + tl.program_id(1) * part + first + rows
    tl.store(row_lse + place, losses, mask=live)
    tl.store(row_sum + place, slopes, mask=live)


def forward(problem: Contrast, bias: Tensor) -> tuple[Tensor, Tensor]:
    with on(problem.z0):
        plan, own = Plan(problem), problem.row is not None
        if plan.is_wide:
            return _in_order(plan, _wide_sums(plan, bias))
        anchors, candidates, tile = plan.anchors, plan.candidates, plan.launch("logsumexp")
        n, c, row_tiles = len(anchors.order), len(candidates.order), triton.cdiv(len(anchors.order), tile.rows)
        splits, span = split(c, tile.columns, plan.row_tiles(anchors, tile.rows), FEW, MOST_SPLITS)
        parts, sums = plan.empty(2, 1 if own else plan.group, splits, n), plan.empty(2, problem.num_rows, n)
        for masks in plan.groups():
            plan.pack(masks)
            size = masks.stop - masks.start
            for block in plan.depth.blocks:
                _sums[row_tiles, splits, size](
                    anchors.packed, candidates.packed, anchors.bounds[masks], plan.count[masks], plan.low, plan.high,
                    problem.inverse_temperature, bias, *parts, c, plan.depth.width, span,
                    anchors.padded, candidates.padded, n, 0 if own else splits * n, None, None, precision(plan.dtype),
                    tile.rows, tile.columns, block, plan.depth.step, plan.depth.is_whole, **tile.options,
                )  # fmt: skip
            if not own:
                torch.sum(parts[:, :size], 2, out=sums[:, masks])
        if own:  # each anchor is in one group or another
            torch.sum(parts, 2, out=sums)
        losses, slopes = _in_order(plan, sums)
        return (losses.squeeze(1), slopes.squeeze(1)) if own else (losses, slopes)


def _wide_sums(plan: Plan, bias: Tensor) -> Tensor:
    """(2, R, N) where products are the library's."""
    tiles = Tiles(plan, plan.anchors, plan.candidates)
    n, c, tile = len(plan.anchors.order), len(plan.candidates.order), tiles.tile
    parts, sums = plan.empty(2, tiles.parts, n), plan.empty(2, plan.r, n)
    for masks in plan.groups():
        plan.pack(masks)
        for r in range(masks.start, masks.stop):
            for one in tiles.of(r - masks.start):
                _sums[tiles.grid(one)](
                    one.products, None, plan.anchors.bounds[r:], plan.count[r:], plan.low, plan.high,
                    plan.problem.inverse_temperature, bias, *parts[:, tiles.part(one) :],
                    c, one.products.shape[1], tiles.span, 0, 0, n, 0, *one.first, precision(plan.dtype),
                    tile.rows, tile.columns, plan.depth.step, plan.depth.step, False, **tile.options,
                )  # fmt: skip
            torch.sum(parts, 1, out=sums[:, r])
    return sums


def _in_order(plan: Plan, sums: Tensor) -> tuple[Tensor, Tensor]:
    losses, slopes = (torch.empty_like(x).index_copy_(0, plan.anchors.order, x) for x in sums.mT.contiguous())
    return losses, slopes


def backward(problem: Contrast, bias: Tensor, grad: Tensor) -> ContrastGradients:
    return _backward(problem, bias, grad, torch.float32)


def fused(problem: Contrast, bias: Tensor, weight: float) -> tuple[Tensor, Tensor, ContrastGradients]:
    """Scores are made twice: there is no room to keep them."""
    losses, slopes = forward(problem, bias)
    return losses, slopes, _backward(problem, bias, torch.full_like(losses, weight), kept(problem.z0.dtype))


def _backward(problem: Contrast, bias: Tensor, grad: Tensor, dtype: torch.dtype) -> ContrastGradients:
    with on(problem.z0):
        plan = Plan(problem, bias)
        unit = unit_of(grad.abs().amax(0))
        weight = (grad / unit).reshape(len(problem.z0), -1)[plan.anchors.order].T.contiguous()
        return Pull(plan, unit, (Direction(weight, weight), None), dtype).gradients()
