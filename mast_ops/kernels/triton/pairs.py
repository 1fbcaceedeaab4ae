"""Positive pairs: all K subspaces from one read of z0 and z1, as a product with K columns; nothing is N x K x D.

Forward: a program takes a tile of rows and a part of D. Backward: a tile of D and a part of the rows, so that
the gradient of its mask columns is summed where it stands. Parts are summed afterwards, in a fixed order.

With ``subspace`` each sample reads its own mask row, and no sample pays for the other K - 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops.kernels.triton._launch import MANY, on, pairs_launch, power, precision, readable, split
from mast_ops.kernels.triton._tiles import likelihood, new_like, product, read
from mast_ops.kernels.triton.gap_sums import gap_sums, gap_sums_backward

__all__ = ["distance", "distance_backward", "gap_sums", "gap_sums_backward", "products", "products_backward"]


@triton.jit
def _mask_rows(subspace, rows, N, BLOCK_K: tl.constexpr):
    """Which masks a tile reads: all of them, or that of each sample."""
    return tl.arange(0, BLOCK_K).to(tl.int64) if subspace is None else tl.load(subspace + rows, mask=rows < N, other=0)


@triton.jit
def _empty(subspace, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    return tl.zeros((BLOCK_M, BLOCK_K if subspace is None else BLOCK_D), tl.float32)


@triton.jit
def _accumulate(pooled, x, masks, subspace, PRECISION: tl.constexpr):
    if subspace is None:
        pooled = product(x, tl.trans(masks), pooled, PRECISION)
    else:
        pooled += x * masks
    return pooled


@triton.jit
def _write(out, pooled, subspace, rows, N, K, BLOCK_K: tl.constexpr):
    """One part of the result: (N, K), or (N,) with ``subspace``."""
    if subspace is None:
        ks = tl.arange(0, BLOCK_K)
        tl.store(out + rows[:, None] * K + ks[None, :], pooled, mask=(rows < N)[:, None] & (ks < K)[None, :])
    else:
        tl.store(out + rows, tl.sum(pooled, 1), mask=rows < N)


@triton.jit
def _distance(
    z0, z1, squared, log_variance, scale, subspace, out,
    N, K, D, span, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    own = _mask_rows(subspace, rows, N, BLOCK_K)
    pooled = _empty(subspace, BLOCK_M, BLOCK_K, BLOCK_D)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, D), BLOCK_D):
        columns = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        inside = (rows < N)[:, None] & (columns < D)[None, :]
        gap = read(z0, rows, columns, z0_n, z0_d, inside) - read(z1, rows, columns, z1_n, z1_d, inside)
        gap = gap * gap
        if log_variance is not None:
            v = read(log_variance, rows, columns, v_n, v_d, inside)
            gap = tl.load(scale + columns, mask=columns < D, other=0)[None, :] * (gap * tl.exp(-v) + v)
        masks = read(squared, own, columns, D, 1, (own < K)[:, None] & (columns < D)[None, :])
        pooled = _accumulate(pooled, gap, masks, subspace, PRECISION)
    out += tl.program_id(1).to(tl.int64) * N * (K if subspace is None else 1)
    _write(out, pooled, subspace, rows, N, K, BLOCK_K)


@triton.jit
def _products(
    z0, z1, squared, subspace, out_dot, out_norm0, out_norm1,
    N, K, D, span, z0_n, z0_d, z1_n, z1_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    own = _mask_rows(subspace, rows, N, BLOCK_K)
    dot = _empty(subspace, BLOCK_M, BLOCK_K, BLOCK_D)
    norm0 = _empty(subspace, BLOCK_M, BLOCK_K, BLOCK_D)
    norm1 = _empty(subspace, BLOCK_M, BLOCK_K, BLOCK_D)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, D), BLOCK_D):
        columns = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        inside = (rows < N)[:, None] & (columns < D)[None, :]
        x0 = read(z0, rows, columns, z0_n, z0_d, inside)
        x1 = read(z1, rows, columns, z1_n, z1_d, inside)
        masks = read(squared, own, columns, D, 1, (own < K)[:, None] & (columns < D)[None, :])
        dot = _accumulate(dot, x0 * x1, masks, subspace, PRECISION)
        norm0 = _accumulate(norm0, x0 * x0, masks, subspace, PRECISION)
        norm1 = _accumulate(norm1, x1 * x1, masks, subspace, PRECISION)
    part = tl.program_id(1).to(tl.int64) * N * (K if subspace is None else 1)
    _write(out_dot + part, dot, subspace, rows, N, K, BLOCK_K)
    _write(out_norm0 + part, norm0, subspace, rows, N, K, BLOCK_K)
    _write(out_norm1 + part, norm1, subspace, rows, N, K, BLOCK_K)


@triton.jit
def _pull(grad, masks, squared, subspace, rows, columns, N, K, D, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """(G, weight): the gradient (rows, BLOCK_K) of the pooled values, and that of the tile they pool.

    With ``subspace`` a row of G has its one value in its own column.
    """
    ks = tl.arange(0, BLOCK_K)
    if subspace is None:
        table = read(grad, rows, ks, K, 1, (rows < N)[:, None] & (ks < K)[None, :])
        weight = product(table, masks, tl.zeros((rows.shape[0], columns.shape[0]), tl.float32), PRECISION)
    else:
        own = tl.load(subspace + rows, mask=rows < N, other=0)
        given = tl.load(grad + rows, mask=rows < N, other=0)
        table = tl.where(own[:, None] == ks[None, :], given[:, None], 0.0)
        weight = given[:, None] * read(squared, own, columns, D, 1, (rows < N)[:, None] & (columns < D)[None, :])
    return table, weight


@triton.jit
def _distance_backward(
    grad, z0, z1, squared, log_variance, scale, subspace, g_z0, g_z1, g_squared, g_log_variance,
    N, K, D, span, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = (tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    some = (ks < K)[:, None] & (columns < D)[None, :]
    masks = read(squared, ks, columns, D, 1, some)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, N), BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (rows < N)[:, None] & (columns < D)[None, :]
        place = rows[:, None] * D + columns[None, :]
        gap = read(z0, rows, columns, z0_n, z0_d, inside) - read(z1, rows, columns, z1_n, z1_d, inside)
        table, weight = _pull(grad, masks, squared, subspace, rows, columns, N, K, D, PRECISION, BLOCK_K)
        pooled = gap * gap
        if log_variance is not None:
            v = read(log_variance, rows, columns, v_n, v_d, inside)
            unit = tl.load(scale + columns, mask=columns < D, other=0)[None, :]
            weight *= unit
            likelihood = pooled * tl.exp(-v)
            tl.store(g_log_variance + place, weight * (1 - likelihood), mask=inside)
            weight *= tl.exp(-v)
            pooled = unit * (likelihood + v)
        total = product(tl.trans(table), pooled, total, PRECISION)
        tl.store(g_z0 + place, 2 * weight * gap, mask=inside)
        tl.store(g_z1 + place, -2 * weight * gap, mask=inside)
    part = g_squared + tl.program_id(1).to(tl.int64) * K * D
    tl.store(part + ks.to(tl.int64)[:, None] * D + columns[None, :], total, mask=some)


@triton.jit
def _products_backward(
    g_dot, g_norm0, g_norm1, z0, z1, squared, subspace, g_z0, g_z1, g_squared,
    N, K, D, span, z0_n, z0_d, z1_n, z1_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = (tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    some = (ks < K)[:, None] & (columns < D)[None, :]
    masks = read(squared, ks, columns, D, 1, some)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, N), BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (rows < N)[:, None] & (columns < D)[None, :]
        place = rows[:, None] * D + columns[None, :]
        x0 = read(z0, rows, columns, z0_n, z0_d, inside)
        x1 = read(z1, rows, columns, z1_n, z1_d, inside)
        table, cross = _pull(g_dot, masks, squared, subspace, rows, columns, N, K, D, PRECISION, BLOCK_K)
        total = product(tl.trans(table), x0 * x1, total, PRECISION)
        table, weight = _pull(g_norm0, masks, squared, subspace, rows, columns, N, K, D, PRECISION, BLOCK_K)
        total = product(tl.trans(table), x0 * x0, total, PRECISION)
        tl.store(g_z0 + place, cross * x1 + 2 * weight * x0, mask=inside)
        table, weight = _pull(g_norm1, masks, squared, subspace, rows, columns, N, K, D, PRECISION, BLOCK_K)
        total = product(tl.trans(table), x1 * x1, total, PRECISION)
        tl.store(g_z1 + place, cross * x0 + 2 * weight * x1, mask=inside)
    part = g_squared + tl.program_id(1).to(tl.int64) * K * D
    tl.store(part + ks.to(tl.int64)[:, None] * D + columns[None, :], total, mask=some)


def distance(
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """As :func:`mast_ops.kernels.eager.pairs.distance`."""
    (n, d), k, block_k = z0.shape, len(squared), power(len(squared))
    tile = pairs_launch("pairs", z0.dtype, k)
    splits, span = split(d, tile.columns, triton.cdiv(n, tile.rows), MANY)
    z0, z1, squared = *readable(z0, z1), squared.contiguous()
    variance, scale, (v_n, v_d) = likelihood(log_variance, scale)
    out = z0.new_empty(splits, *((n, k) if subspace is None else (n,)), dtype=torch.float32)
    with on(z0):
        _distance[triton.cdiv(n, tile.rows), splits](
            z0, z1, squared, variance, scale, subspace, out,
            n, k, d, span, *z0.stride(), *z1.stride(), v_n, v_d,
            precision(z0.dtype), tile.rows, block_k, tile.columns, **tile.options,
        )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0)


def products(z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`mast_ops.kernels.eager.pairs.products`."""
    (n, d), k, block_k = z0.shape, len(squared), power(len(squared))
    tile = pairs_launch("pairs", z0.dtype, k)
    splits, span = split(d, tile.columns, triton.cdiv(n, tile.rows), MANY)
    z0, z1, squared = *readable(z0, z1), squared.contiguous()
    out = z0.new_empty(3, splits, *((n, k) if subspace is None else (n,)), dtype=torch.float32)
    with on(z0):
        _products[triton.cdiv(n, tile.rows), splits](
            z0, z1, squared, subspace, *out, n, k, d, span, *z0.stride(), *z1.stride(),
            precision(z0.dtype), tile.rows, block_k, tile.columns, **tile.options,
        )  # fmt: skip
    # Sums, not views of one tensor: the outputs of an operator must not share memory.
    dot, norm0, norm1 = (x.sum(0) for x in out)
    return dot, norm0, norm1


def distance_backward(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of z0, z1, squared and log_variance; ``scale`` is a constant."""
    (n, d), k, block_k = z0.shape, len(squared), power(len(squared))
    tile = pairs_launch("pairs_backward", z0.dtype, k)
    splits, span = split(n, tile.rows, triton.cdiv(d, tile.columns), MANY)
    x0, x1 = readable(z0, z1)
    variance, scale, (v_n, v_d) = likelihood(log_variance, scale)
    g_z0, g_z1 = new_like(x0), new_like(x1)
    g_variance = None if variance is None else new_like(variance)
    g_squared = x0.new_empty(splits, k, d, dtype=torch.float32)
    with on(z0):
        _distance_backward[triton.cdiv(d, tile.columns), splits](
            grad.contiguous(), x0, x1, squared.contiguous(), variance, scale, subspace,
            g_z0, g_z1, g_squared, g_variance, n, k, d, span, *x0.stride(), *x1.stride(), v_n, v_d,
            precision(x0.dtype), tile.rows, block_k, tile.columns, **tile.options,
        )  # fmt: skip
    if g_variance is not None and log_variance is not None:
        g_variance = g_variance.to(log_variance.dtype)
    return g_z0.to(z0.dtype), g_z1.to(z1.dtype), g_squared.sum(0).to(squared.dtype), g_variance


def products_backward(
    g_dot: Tensor,
    g_norm0: Tensor,
    g_norm1: Tensor,
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    subspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z0, z1 and squared."""
    (n, d), k, block_k = z0.shape, len(squared), power(len(squared))
    tile = pairs_launch("pairs_backward", z0.dtype, k)
    splits, span = split(n, tile.rows, triton.cdiv(d, tile.columns), MANY)
    x0, x1 = readable(z0, z1)
    g_z0, g_z1 = new_like(x0), new_like(x1)
    g_squared = x0.new_empty(splits, k, d, dtype=torch.float32)
    with on(z0):
        _products_backward[triton.cdiv(d, tile.columns), splits](
            g_dot.contiguous(), g_norm0.contiguous(), g_norm1.contiguous(), x0, x1, squared.contiguous(), subspace,
            g_z0, g_z1, g_squared, n, k, d, span, *x0.stride(), *x1.stride(),
            precision(x0.dtype), tile.rows, block_k, tile.columns, **tile.options,
        )  # fmt: skip
    return g_z0.to(z0.dtype), g_z1.to(z1.dtype), g_squared.sum(0).to(squared.dtype)
