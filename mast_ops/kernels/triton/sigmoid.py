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
from mast_ops.kernels.triton.contrast_kernels import LOG2E, UNIT, _depth, _elsewhere, _kernel, _scores, _segment


@_kernel
def _sums(
    a, b, bounds, count, low, high, inverse_temperature, bias, row_lse, row_sum,
    C, width, span, a_rows, b_rows, part, of_rows, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LEAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of anchors against a span of candidates: sums of losses and of slopes."""
    r = tl.program_id(2)
    first, total = _segment(bounds, r)
    start_m = tl.program_id(0) * BLOCK_M
    if (start_m >= total) | _elsewhere(count + r, BLOCK_D, LEAST, WHOLE):
        return
    rows = start_m + tl.arange(0, BLOCK_M)
    live = rows < total
    place = first + tl.minimum(rows, total - 1)
    begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
    depth = _depth(count + r, BLOCK_D)
    scale, offset = tl.load(inverse_temperature) / (UNIT * UNIT), tl.load(bias)
    inner = tl.arange(0, BLOCK_D)
    a += (r.to(tl.int64) * a_rows + rows)[:, None] * width + inner[None, :]
    b += r.to(tl.int64) * b_rows * width + inner[None, :]
    if WHOLE:
        a_tile = tl.load(a)
    losses = tl.zeros((BLOCK_M,), tl.float32)
    slopes = tl.zeros((BLOCK_M,), tl.float32)
    span_start = tl.program_id(1) * span
    for start_n in range(span_start, tl.minimum(span_start + span, C), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
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
                    anchors.padded, candidates.padded, n, 0 if own else splits * n, precision(plan.dtype),
                    tile.rows, tile.columns, block, plan.depth.step, plan.depth.is_whole, **tile.options,
                )  # fmt: skip
            if not own:
                torch.sum(parts[:, :size], 2, out=sums[:, masks])
        if own:  # each anchor is in one group or another
            torch.sum(parts, 2, out=sums)
        losses, slopes = (torch.empty_like(x).index_copy_(0, anchors.order, x) for x in sums.mT.contiguous())
        return (losses.squeeze(1), slopes.squeeze(1)) if own else (losses, slopes)


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
