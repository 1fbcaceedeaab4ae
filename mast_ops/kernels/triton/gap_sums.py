"""Sums over samples of the squared differences of pairs: one pass over memory, whatever the number of subspaces."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops.kernels.triton._launch import MANY, on, pairs_launch, power, precision, readable, split
from mast_ops.kernels.triton._tiles import likelihood, new_like, product, read


@triton.jit
def _gap_sums(
    z0, z1, log_variance, scale, subspace, out,
    N, K, D, span, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One part of the sums, (1, D) or (K, D): a block of columns, a span of rows."""
    columns = (tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    total = tl.zeros((1 if subspace is None else BLOCK_K, BLOCK_D), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, N), BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (rows < N)[:, None] & (columns < D)[None, :]
        gap = read(z0, rows, columns, z0_n, z0_d, inside) - read(z1, rows, columns, z1_n, z1_d, inside)
        gap = gap * gap
        if log_variance is not None:
            v = read(log_variance, rows, columns, v_n, v_d, inside)
            gap = tl.load(scale + columns, mask=columns < D, other=0)[None, :] * (gap * tl.exp(-v) + v)
        if subspace is None:
            total += tl.sum(gap, 0)[None, :]
        else:
            own = tl.load(subspace + rows, mask=rows < N, other=-1)
            total = product(tl.where(ks[:, None] == own[None, :], 1.0, 0.0), gap, total, PRECISION)
    part = out + tl.program_id(1).to(tl.int64) * K * D
    if subspace is None:
        tl.store(part + columns[None, :], total, mask=(columns < D)[None, :])
    else:
        place = ks.to(tl.int64)[:, None] * D + columns[None, :]
        tl.store(part + place, total, mask=(ks < K)[:, None] & (columns < D)[None, :])


@triton.jit
def _gap_sums_backward(
    grad, z0, z1, log_variance, scale, subspace, g_z0, g_z1, g_log_variance,
    N, D, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    inside = (rows < N)[:, None] & (columns < D)[None, :]
    place = rows[:, None] * D + columns[None, :]
    gap = read(z0, rows, columns, z0_n, z0_d, inside) - read(z1, rows, columns, z1_n, z1_d, inside)
    if subspace is None:
        slope = tl.load(grad + columns, mask=columns < D, other=0)[None, :]
    else:
        slope = read(grad, tl.load(subspace + rows, mask=rows < N, other=0), columns, D, 1, inside)
    if log_variance is not None:
        v = read(log_variance, rows, columns, v_n, v_d, inside)
        slope *= tl.load(scale + columns, mask=columns < D, other=0)[None, :]
        weight = tl.exp(-v)
        tl.store(g_log_variance + place, slope * (1 - gap * gap * weight), mask=inside)
        slope *= weight
    tl.store(g_z0 + place, 2 * slope * gap, mask=inside)
    tl.store(g_z1 + place, -2 * slope * gap, mask=inside)


def gap_sums(
    z0: Tensor,
    z1: Tensor,
    num_subspaces: int,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """As :func:`mast_ops.kernels.eager.pairs.gap_sums`."""
    (n, d), groups = z0.shape, 1 if subspace is None else num_subspaces
    tile = pairs_launch("pairs_backward", z0.dtype, groups)
    splits, span = split(n, tile.rows, triton.cdiv(d, tile.columns), MANY)
    z0, z1 = readable(z0, z1)
    variance, scale, (v_n, v_d) = likelihood(log_variance, scale)
    out = z0.new_empty(splits, groups, d, dtype=torch.float32)
    with on(z0):
        _gap_sums[triton.cdiv(d, tile.columns), splits](
            z0, z1, variance, scale, subspace, out, n, groups, d, span, *z0.stride(), *z1.stride(), v_n, v_d,
            precision(z0.dtype), tile.rows, power(groups), tile.columns, **tile.options,
        )  # fmt: skip
    return out.sum(0)


def gap_sums_backward(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of z0, z1 and log_variance."""
    n, d = z0.shape
    tile = pairs_launch("pairs_backward", z0.dtype, 1)
    x0, x1 = readable(z0, z1)
    variance, scale, (v_n, v_d) = likelihood(log_variance, scale)
    g_z0, g_z1, g_variance = new_like(x0), new_like(x1), None if variance is None else new_like(variance)
    with on(z0):
        _gap_sums_backward[triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns)](
            grad.contiguous(), x0, x1, variance, scale, subspace, g_z0, g_z1, g_variance,
            n, d, *x0.stride(), *x1.stride(), v_n, v_d, tile.rows, tile.columns, **tile.options,
        )  # fmt: skip
    if g_variance is not None and log_variance is not None:
        g_variance = g_variance.to(log_variance.dtype)
    return g_z0.to(z0.dtype), g_z1.to(z1.dtype), g_variance
