"""All pairs, each by itself: the pairwise sigmoid under R masks, without a matrix of scores in memory.

Packing, and the gradient with sigmoids in place of softmaxes, are those of :mod:`mast_ops.kernels.triton.contrast`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops.kernels.contract import Contrast, ContrastGradients
from mast_ops.kernels.triton._launch import FEW, on, precision, split
from mast_ops.kernels.triton.contrast import MOST_SPLITS, Direction, Plan
from mast_ops.kernels.triton.contrast_kernels import LOG2E, _depth, _kernel, _scores


@_kernel
def _sums(
    a, b, bounds, count, low, high, inverse_temperature, bias, row_lse, row_sum, C, width, span, rows_stride,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of anchors against a span of candidates: sums of losses and of slopes."""
    first = tl.load(bounds)
    total = tl.load(bounds + 1) - first
    start_m = tl.program_id(0) * BLOCK_M
    if start_m >= total:
        return
    rows = start_m + tl.arange(0, BLOCK_M)
    live = rows < total
    place = first + tl.minimum(rows, total - 1)
    begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
    depth = _depth(count, BLOCK_D)
    scale, offset = tl.load(inverse_temperature), tl.load(bias)
    inner = tl.arange(0, BLOCK_D)
    a += rows.to(tl.int64)[:, None] * width + inner[None, :]
    losses = tl.zeros((BLOCK_M,), tl.float32)
    slopes = tl.zeros((BLOCK_M,), tl.float32)
    span_start = tl.program_id(1) * span
    for start_n in range(span_start, tl.minimum(span_start + span, C), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        b_rows = b + columns.to(tl.int64)[:, None] * width + inner[None, :]
        x = _scores(a, b_rows, depth, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * scale + offset
        sign = tl.where((columns[None, :] >= begin) & (columns[None, :] < end), -1.0, 1.0)
        x *= sign
        # softplus without overflow; small ones by their exponential alone: 1 + small would lose it.
        small = tl.exp2(-tl.abs(x) * LOG2E)
        tail = tl.where(small < 1e-4, small * (1 - 0.5 * small), tl.log2(1 + small) / LOG2E)
        slope = tl.where(x >= 0, 1.0, small) / (1 + small)
        inside = (columns < C)[None, :]
        losses += tl.sum(tl.where(inside, tl.where(x > 0, x, 0.0) + tail + 0 * x, 0.0), 1)  # a NaN stays one
        slopes += tl.sum(tl.where(inside, sign * slope, 0.0), 1)
    part = tl.program_id(1) * rows_stride + first + rows
    tl.store(row_lse + part, losses, mask=live)
    tl.store(row_sum + part, slopes, mask=live)


def forward(problem: Contrast, bias: Tensor) -> tuple[Tensor, Tensor]:
    with on(problem.z0):
        plan = Plan(problem)
        anchors, candidates, tile = plan.anchors, plan.candidates, plan.launch("logsumexp")
        n, c, row_tiles = len(anchors.order), len(candidates.order), triton.cdiv(len(anchors.order), tile.rows)
        splits, span = split(c, tile.columns, row_tiles, FEW, MOST_SPLITS)
        sums = plan.empty(2, problem.num_rows, splits, n)
        for r in range(plan.r):
            plan.pack(r)
            group = r if problem.row is None else 0
            _sums[row_tiles, splits](
                anchors.packed, candidates.packed, anchors.bounds[r], plan.count[r], plan.low, plan.high,
                problem.inverse_temperature, bias, sums[0, group], sums[1, group], c, plan.width, span, n,
                precision(plan.dtype), tile.rows, tile.columns, plan.depth.step, **tile.options,
            )  # fmt: skip
        losses, slopes = (x.sum(1).T for x in sums)
        losses, slopes = (torch.empty_like(x).index_copy_(0, anchors.order, x) for x in (losses, slopes))
        return (losses, slopes) if problem.row is None else (losses.squeeze(1), slopes.squeeze(1))


def backward(problem: Contrast, bias: Tensor, grad: Tensor) -> ContrastGradients:
    z0, z1, masks, inverse_temperature = problem[:4]
    assert z1 is not None
    with on(z0):
        plan = Plan(problem, bias)
        unit = grad.abs().amax(0).float().clamp_min(1e-30) / 4096  # as in contrast's
        pull = (grad / unit).reshape(len(z0), -1)[plan.anchors.order].T.contiguous()
        rows = Direction(pull, pull, pull)
        factor = (unit * inverse_temperature).expand(plan.r)
        g_z0, g_z1 = (torch.zeros(z.shape, dtype=torch.float32, device=z.device) for z in (z0, z1))
        g_masks, alignment = plan.empty(*masks.shape), plan.empty(plan.r)
        for r in range(plan.r):
            plan.pack(r)
            g_masks[r], alignment[r] = plan.pull_back(r, False, (rows, None), factor[r], g_z0)
            g_masks[r] += plan.pull_back(r, True, (None, rows), factor[r], g_z1)[0]
        return ContrastGradients(g_z0, g_z1, g_masks, (alignment * unit).sum())


def fused(problem: Contrast, bias: Tensor, weight: float) -> tuple[Tensor, Tensor, ContrastGradients]:
    """Scores are made twice: there is no room to keep them."""
    losses, slopes = forward(problem, bias)
    return losses, slopes, backward(problem, bias, torch.full_like(losses, weight))
