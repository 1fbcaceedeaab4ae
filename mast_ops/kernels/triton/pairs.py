"""Positive pairs: all R rows of the table from one read of z0 and z1, as a product with R columns; nothing is
N x R x D.

Forward: a program takes a tile of samples and a part of D. Backward: a tile of D and a part of the samples, so that
the gradient of its part of the masks is summed where it stands. Of the programs that share a tile, the last to come
adds their parts, in a fixed order: one launch forward, and one backward.

With ``row`` each sample reads its own, and no sample pays for the other R - 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops.kernels.contract import Gap, Table
from mast_ops.kernels.triton._launch import (
    MANY,
    Launch,
    launch,
    on,
    pairs_launch,
    pooling,
    power,
    precision,
    readable,
    split,
)
from mast_ops.kernels.triton._parts import added, all_left, leave, shared, write
from mast_ops.kernels.triton._tiles import (
    Likelihood,
    certainty_of,
    dense,
    in_dtype_of,
    new_like,
    product,
    read,
    read_masks,
)
from mast_ops.kernels.triton.gap_sums import gap_sums, gap_sums_backward

__all__ = ["distance", "distance_backward", "gap_sums", "gap_sums_backward", "products", "products_backward"]

_kernel = triton.jit(do_not_specialize=["splits"])  # any number of parts is summed by the same code


@triton.jit
def _mask_rows(row, samples, N, BLOCK_R: tl.constexpr):
    """Which masks a tile reads: all of them, or that of each sample."""
    return tl.arange(0, BLOCK_R).to(tl.int64) if row is None else tl.load(row + samples, mask=samples < N, other=0)


@triton.jit
def _empty(row, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    return tl.zeros((BLOCK_M, BLOCK_R if row is None else BLOCK_D), tl.float32)


@triton.jit
def _accumulate(pooled, x, squared, row, PRECISION: tl.constexpr):
    if row is None:
        pooled = product(x, tl.trans(squared), pooled, PRECISION)
    else:
        pooled += x * squared
    return pooled


@triton.jit
def _place(row, samples, N, R, BLOCK_R: tl.constexpr):
    """Where a tile of results is in memory, (N, R), or (N,) with ``row``; and which of them there are."""
    if row is None:
        rs = tl.arange(0, BLOCK_R)
        place, inside = samples[:, None] * R + rs[None, :], (samples < N)[:, None] & (rs < R)[None, :]
    else:
        place, inside = samples, samples < N
    return place, inside


@triton.jit
def _whole(pooled, row):
    return pooled if row is None else tl.sum(pooled, 1)


@triton.jit
def _write_masks(out, total, masks, parts, arrived, splits, rs, dims, R, D):
    """A tile of the masks' gradient, (R, D), given that of their squares."""
    total *= 2 * read_masks(masks, rs, dims, R, D)
    place, inside = rs.to(tl.int64)[:, None] * D + dims[None, :], (rs < R)[:, None] & (dims < D)[None, :]
    write(out, total, parts, arrived, splits, R, D, place, inside)


@_kernel
def _distance(
    z0, z1, masks, log_variance, scale, row, out, parts, arrived,
    N, R, D, span, splits, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    samples = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    own = _mask_rows(row, samples, N, BLOCK_R)
    pooled = _empty(row, BLOCK_M, BLOCK_R, BLOCK_D)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, D), BLOCK_D):
        dims = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        inside = (samples < N)[:, None] & (dims < D)[None, :]
        gap = read(z0, samples, dims, z0_n, z0_d, inside) - read(z1, samples, dims, z1_n, z1_d, inside)
        if log_variance is not None:
            v = read(log_variance, samples, dims, v_n, v_d, inside)
            gap *= certainty_of(v)  # before the square: nothing over a tiny variance stays nothing
            gap = tl.load(scale + dims, mask=dims < D, other=0)[None, :] * (gap * gap)
        else:
            gap = gap * gap
        x = read_masks(masks, own, dims, R, D)
        squared = x * x
        pooled = _accumulate(pooled, gap, squared, row, PRECISION)
    place, inside = _place(row, samples, N, R, BLOCK_R)
    write(out, _whole(pooled, row), parts, arrived, splits, N, R if row is None else 1, place, inside)


@_kernel
def _products(
    z0, z1, masks, row, out_dot, out_norm0, out_norm1, parts, arrived,
    N, R, D, span, splits, z0_n, z0_d, z1_n, z1_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    samples = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    own = _mask_rows(row, samples, N, BLOCK_R)
    dot = _empty(row, BLOCK_M, BLOCK_R, BLOCK_D)
    norm0 = _empty(row, BLOCK_M, BLOCK_R, BLOCK_D)
    norm1 = _empty(row, BLOCK_M, BLOCK_R, BLOCK_D)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, D), BLOCK_D):
        dims = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        inside = (samples < N)[:, None] & (dims < D)[None, :]
        x0 = read(z0, samples, dims, z0_n, z0_d, inside)
        x1 = read(z1, samples, dims, z1_n, z1_d, inside)
        x = read_masks(masks, own, dims, R, D)
        squared = x * x
        dot = _accumulate(dot, x0 * x1, squared, row, PRECISION)
        norm0 = _accumulate(norm0, x0 * x0, squared, row, PRECISION)
        norm1 = _accumulate(norm1, x1 * x1, squared, row, PRECISION)
    place, inside = _place(row, samples, N, R, BLOCK_R)
    dot, norm0, norm1 = _whole(dot, row), _whole(norm0, row), _whole(norm1, row)
    if parts is not None:
        columns = R if row is None else 1
        parts0 = parts + tl.full((), 1, tl.int64) * splits * N * columns
        parts1 = parts0 + tl.full((), 1, tl.int64) * splits * N * columns
        leave(parts, dot, N, columns, place, inside)
        leave(parts0, norm0, N, columns, place, inside)
        leave(parts1, norm1, N, columns, place, inside)
        count = all_left(arrived, splits)
        inside &= count > 0
        dot = added(parts, dot, count, N, columns, place, inside)
        norm0 = added(parts0, norm0, count, N, columns, place, inside)
        norm1 = added(parts1, norm1, count, N, columns, place, inside)
    tl.store(out_dot + place, dot, mask=inside)
    tl.store(out_norm0 + place, norm0, mask=inside)
    tl.store(out_norm1 + place, norm1, mask=inside)


@triton.jit
def _seen(squared, masks, row, samples, dims, N, D, inside):
    """The squared masks of a tile: all of them, (R, dims), or each sample's own."""
    if row is not None:
        squared = read(masks, tl.load(row + samples, mask=samples < N, other=0), dims, D, 1, inside)
        squared *= squared
    return squared


@triton.jit
def _pull(grad, seen, row, samples, dims, N, R, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr):
    """(G, weight): the gradient (samples, BLOCK_R) of the pooled values, and that of the tile they pool.

    With ``row`` a row of G has its one value in its own column.
    """
    rs = tl.arange(0, BLOCK_R)
    if row is None:
        table = read(grad, samples, rs, R, 1, (samples < N)[:, None] & (rs < R)[None, :])
        weight = product(table, seen, tl.zeros((samples.shape[0], dims.shape[0]), tl.float32), PRECISION)
    else:
        own = tl.load(row + samples, mask=samples < N, other=0)
        given = tl.load(grad + samples, mask=samples < N, other=0)
        table = tl.where(own[:, None] == rs[None, :], given[:, None], 0.0)
        weight = given[:, None] * seen
    return table, weight


@_kernel
def _distance_backward(
    grad, z0, z1, masks, log_variance, scale, row, g_z0, g_z1, g_log_variance, g_masks, parts, arrived,
    N, R, D, span, splits, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    dims = (tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    rs = tl.arange(0, BLOCK_R)
    squared = read_masks(masks, rs, dims, R, D)
    squared *= squared
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, N), BLOCK_M):
        samples = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (samples < N)[:, None] & (dims < D)[None, :]
        place = samples[:, None] * D + dims[None, :]
        gap = read(z0, samples, dims, z0_n, z0_d, inside) - read(z1, samples, dims, z1_n, z1_d, inside)
        seen = _seen(squared, masks, row, samples, dims, N, D, inside)
        table, weight = _pull(grad, seen, row, samples, dims, N, R, PRECISION, BLOCK_R)
        pooled = gap * gap
        slope = 2 * weight * gap
        if log_variance is not None:
            v = read(log_variance, samples, dims, v_n, v_d, inside)
            unit = tl.load(scale + dims, mask=dims < D, other=0)[None, :]
            certainty = certainty_of(v)
            gap *= certainty  # before the square, as in the forward pass
            tl.store(g_log_variance + place, unit * weight * (-gap * gap), mask=inside)
            slope = 2 * (unit * weight * gap) * certainty
            pooled = unit * (gap * gap)
        total = product(tl.trans(table), pooled, total, PRECISION)
        tl.store(g_z0 + place, slope, mask=inside)
        tl.store(g_z1 + place, -slope, mask=inside)
    _write_masks(g_masks, total, masks, parts, arrived, splits, rs, dims, R, D)


@_kernel
def _products_backward(
    g_dot, g_norm0, g_norm1, z0, z1, masks, row, g_z0, g_z1, g_masks, parts, arrived,
    N, R, D, span, splits, z0_n, z0_d, z1_n, z1_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    dims = (tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    rs = tl.arange(0, BLOCK_R)
    squared = read_masks(masks, rs, dims, R, D)
    squared *= squared
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, N), BLOCK_M):
        samples = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (samples < N)[:, None] & (dims < D)[None, :]
        place = samples[:, None] * D + dims[None, :]
        x0 = read(z0, samples, dims, z0_n, z0_d, inside)
        x1 = read(z1, samples, dims, z1_n, z1_d, inside)
        seen = _seen(squared, masks, row, samples, dims, N, D, inside)
        table, cross = _pull(g_dot, seen, row, samples, dims, N, R, PRECISION, BLOCK_R)
        total = product(tl.trans(table), x0 * x1, total, PRECISION)
        table, weight = _pull(g_norm0, seen, row, samples, dims, N, R, PRECISION, BLOCK_R)
        total = product(tl.trans(table), x0 * x0, total, PRECISION)
        tl.store(g_z0 + place, cross * x1 + 2 * weight * x0, mask=inside)
        table, weight = _pull(g_norm1, seen, row, samples, dims, N, R, PRECISION, BLOCK_R)
        total = product(tl.trans(table), x1 * x1, total, PRECISION)
        tl.store(g_z1 + place, cross * x0 + 2 * weight * x1, mask=inside)
    _write_masks(g_masks, total, masks, parts, arrived, splits, rs, dims, R, D)


def _tile(dtype: torch.dtype, table: Table) -> Launch:
    return pairs_launch("pairs", dtype, len(table.masks)) if table.row is None else launch("pairs_own", dtype)


def distance(gap: Gap, table: Table) -> Tensor:
    (n, d), r, row = gap.z0.shape, len(table.masks), table.row
    tile = _tile(gap.z0.dtype, table)
    tiles, shape = triton.cdiv(n, tile.rows), (n, r) if row is None else (n,)
    splits, span = split(d, tile.columns, tiles, MANY)
    (z0, z1), variance = readable(gap.z0, gap.z1), Likelihood.of(gap)
    out = z0.new_empty(shape, dtype=torch.float32)
    with on(z0):
        _distance[tiles, splits](
            z0, z1, dense(table.masks), *variance[:2], dense(row), out, *shared(z0, splits, tiles, *shape),
            n, r, d, span, splits, *z0.stride(), *z1.stride(), *variance.strides,
            pooling(z0.dtype), tile.rows, power(r), tile.columns, **tile.options,
        )  # fmt: skip
    return out


def products(z0: Tensor, z1: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), r, row = z0.shape, len(table.masks), table.row
    tile = _tile(z0.dtype, table)
    tiles, shape = triton.cdiv(n, tile.rows), (n, r) if row is None else (n,)
    splits, span = split(d, tile.columns, tiles, MANY)
    z0, z1 = readable(z0, z1)
    dot, norm0, norm1 = (z0.new_empty(shape, dtype=torch.float32) for _ in range(3))
    with on(z0):
        _products[tiles, splits](
            z0, z1, dense(table.masks), dense(row), dot, norm0, norm1, *shared(z0, splits, tiles, 3, *shape),
            n, r, d, span, splits, *z0.stride(), *z1.stride(),
            pooling(z0.dtype), tile.rows, power(r), tile.columns, **tile.options,
        )  # fmt: skip
    return dot, norm0, norm1


def distance_backward(grad: Tensor, gap: Gap, table: Table) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    (n, d), r = gap.z0.shape, len(table.masks)
    tile = pairs_launch("pairs_backward", gap.z0.dtype, r)
    tiles = triton.cdiv(d, tile.columns)
    splits, span = split(n, tile.rows, tiles, MANY)
    (z0, z1), variance = readable(gap.z0, gap.z1), Likelihood.of(gap)
    g_z0, g_z1, g_masks = new_like(z0), new_like(z1), new_like(table.masks)
    g_variance = None if variance.log_variance is None else new_like(variance.log_variance)
    with on(z0):
        _distance_backward[tiles, splits](
            dense(grad), z0, z1, dense(table.masks), *variance[:2], dense(table.row),
            g_z0, g_z1, g_variance, g_masks, *shared(z0, splits, tiles, r, d),
            n, r, d, span, splits, *z0.stride(), *z1.stride(), *variance.strides,
            precision(z0.dtype), tile.rows, power(r), tile.columns, **tile.options,
        )  # fmt: skip
    g_log_variance = in_dtype_of(gap.log_variance, g_variance)
    return g_z0.to(gap.z0.dtype), g_z1.to(gap.z1.dtype), g_masks, g_log_variance


def products_backward(
    grads: tuple[Tensor, Tensor, Tensor], z0: Tensor, z1: Tensor, table: Table
) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), r = z0.shape, len(table.masks)
    tile = pairs_launch("pairs_backward", z0.dtype, r)
    tiles = triton.cdiv(d, tile.columns)
    splits, span = split(n, tile.rows, tiles, MANY)
    x0, x1 = readable(z0, z1)
    g_z0, g_z1, g_masks = new_like(x0), new_like(x1), new_like(table.masks)
    with on(z0):
        _products_backward[tiles, splits](
            *map(dense, grads), x0, x1, dense(table.masks), dense(table.row),
            g_z0, g_z1, g_masks, *shared(x0, splits, tiles, r, d),
            n, r, d, span, splits, *x0.stride(), *x1.stride(),
            precision(x0.dtype), tile.rows, power(r), tile.columns, **tile.options,
        )  # fmt: skip
    return g_z0.to(z0.dtype), g_z1.to(z1.dtype), g_masks
