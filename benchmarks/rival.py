"""The other way to all pairs, for :mod:`benchmarks.predict` alone: products of chunks by the library, and two fused
epilogues. Each chunk of scores stays in L2. Nothing runs it: it is counted, and shows what a backend would launch.
"""

import torch
import triton
import triton.language as tl

from mast_ops.kernels.contract import Contrast
from mast_ops.kernels.triton._plan import Plan

CHUNK = 32 * 2**20  # bytes of scores
_ROWS, _COLUMNS = 64, 128


@triton.jit
def _tile(scores, C, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows, columns, scores + rows.to(tl.int64)[:, None] * C + columns[None, :]


@triton.jit
def sums(scores, scale, row_part, column_part, H, C, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of exp2(score - shift) with a fixed shift, one exponential a score; cosines are at most 1."""
    rows, columns, place = _tile(scores, C, BLOCK_M, BLOCK_N)
    power = tl.exp2((tl.load(place).to(tl.float32) - 1) * tl.load(scale))
    tl.store(row_part + tl.program_id(1) * H + rows, tl.sum(power, 1))
    tl.store(column_part + tl.program_id(0) * C + columns, tl.sum(power, 0))


@triton.jit
def weights(scores, scale, row, column, C, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The gradient of the scores in their place, but for the positives."""
    rows, columns, place = _tile(scores, C, BLOCK_M, BLOCK_N)
    power = tl.exp2((tl.load(place).to(tl.float32) - 1) * tl.load(scale))
    weight = power * (tl.load(row + rows)[:, None] + tl.load(column + columns)[None, :])
    tl.store(place, weight.to(scores.dtype.element_ty))


def both(problem: Contrast) -> None:
    """Forward and backward: one product a chunk, then three. Packing is the other kernels'."""
    plan = Plan(problem)
    n, d, scale = len(plan.anchors.order), plan.d, problem.inverse_temperature
    h = min(n, CHUNK // (2 * n))
    new = plan.anchors.packed.new_empty
    scores, grad_a, grad_b = new(h, n), new(n, d), new(n, d)
    row, column = plan.empty(n), plan.empty(n)
    row_part, column_part = plan.empty(triton.cdiv(n, _COLUMNS), h), plan.empty(triton.cdiv(h, _ROWS), n)
    grid = triton.cdiv(h, _ROWS), triton.cdiv(n, _COLUMNS)
    for r in range(plan.r):
        plan.pack(slice(r, r + 1))
        a, b = plan.anchors.packed[0, :n, :d], plan.candidates.packed[0, :n, :d]
        for start in range(0, n, h):
            torch.mm(a[start : start + h], b.T, out=scores)
            sums[grid](scores, scale, row_part, column_part, h, n, _ROWS, _COLUMNS, num_warps=4)
            torch.sum(row_part, 0, out=row[start : start + h])
            column.add_(column_part.sum(0))
        for start in range(0, n, h):
            torch.mm(a[start : start + h], b.T, out=scores)
            weights[grid](scores, scale, row[start : start + h], column, n, _ROWS, _COLUMNS, num_warps=4)
            torch.mm(scores, b, out=grad_a[start : start + h])
            grad_b.addmm_(scores.T, a[start : start + h])
