"""Sums over samples of the squared differences of pairs: one pass over memory, however many rows the table has."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops.kernels.contract import Gap
from mast_ops.kernels.triton._launch import MANY, on, pairs_launch, power, precision, readable, split
from mast_ops.kernels.triton._parts import shared, write
from mast_ops.kernels.triton._tiles import Likelihood, certainty_of, dense, in_dtype_of, new_like, product, read

_kernel = triton.jit(do_not_specialize=["splits"])  # any number of parts is summed by the same code


@_kernel
def _gap_sums(
    z0, z1, log_variance, scale, row, out, parts, arrived,
    N, R, D, span, splits, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of dimensions of the sums, (1, D) or (R, D), from a span of samples."""
    dims = (tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    rs = tl.arange(0, BLOCK_R)
    total = tl.zeros((1 if row is None else BLOCK_R, BLOCK_D), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, N), BLOCK_M):
        samples = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        inside = (samples < N)[:, None] & (dims < D)[None, :]
        gap = read(z0, samples, dims, z0_n, z0_d, inside) - read(z1, samples, dims, z1_n, z1_d, inside)
        if log_variance is not None:
            v = read(log_variance, samples, dims, v_n, v_d, inside)
            gap *= certainty_of(v)  # before the square: nothing over a tiny variance stays nothing
            gap = tl.load(scale + dims, mask=dims < D, other=0)[None, :] * gap * gap
        else:
            gap = gap * gap
        if row is None:
            total += tl.sum(gap, 0)[None, :]
        else:
            own = tl.load(row + samples, mask=samples < N, other=-1)
            total = product(tl.where(rs[:, None] == own[None, :], 1.0, 0.0), gap, total, PRECISION)
    groups = tl.arange(0, 1 if row is None else BLOCK_R).to(tl.int64)
    place = groups[:, None] * D + dims[None, :]
    inside = (groups < R)[:, None] & (dims < D)[None, :]
    write(out, total, parts, arrived, splits, R, D, place, inside)


@triton.jit
def _gap_sums_backward(
    grad, z0, z1, log_variance, scale, row, g_z0, g_z1, g_log_variance,
    N, D, z0_n, z0_d, z1_n, z1_d, v_n, v_d,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    samples = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    dims = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    inside = (samples < N)[:, None] & (dims < D)[None, :]
    place = samples[:, None] * D + dims[None, :]
    gap = read(z0, samples, dims, z0_n, z0_d, inside) - read(z1, samples, dims, z1_n, z1_d, inside)
    if row is None:
        slope = tl.load(grad + dims, mask=dims < D, other=0)[None, :]
    else:
        slope = read(grad, tl.load(row + samples, mask=samples < N, other=0), dims, D, 1, inside)
    if log_variance is not None:
        v = read(log_variance, samples, dims, v_n, v_d, inside)
        slope *= tl.load(scale + dims, mask=dims < D, other=0)[None, :]
        certainty = certainty_of(v)
        gap *= certainty  # before the square, as in the forward pass
        tl.store(g_log_variance + place, -slope * gap * gap, mask=inside)
        gap *= certainty
    tl.store(g_z0 + place, 2 * slope * gap, mask=inside)
    tl.store(g_z1 + place, -2 * slope * gap, mask=inside)


def gap_sums(gap: Gap, num_rows: int, row: Tensor | None) -> Tensor:
    (n, d), groups = gap.z0.shape, 1 if row is None else num_rows
    tile = pairs_launch("pairs_backward", gap.z0.dtype, groups)
    tiles = triton.cdiv(d, tile.columns)
    splits, span = split(n, tile.rows, tiles, MANY)
    (z0, z1), variance = readable(gap.z0, gap.z1), Likelihood.of(gap)
    out = z0.new_empty(groups, d, dtype=torch.float32)
    with on(z0):
        _gap_sums[tiles, splits](
            z0, z1, *variance[:2], dense(row), out, *shared(z0, splits, tiles, groups, d),
            n, groups, d, span, splits, *z0.stride(), *z1.stride(), *variance.strides,
            precision(z0.dtype), tile.rows, power(groups), tile.columns, **tile.options,
        )  # fmt: skip
    return out


def gap_sums_backward(grad: Tensor, gap: Gap, row: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    n, d = gap.z0.shape
    tile = pairs_launch("pairs_backward", gap.z0.dtype, 1)
    (z0, z1), variance = readable(gap.z0, gap.z1), Likelihood.of(gap)
    g_z0, g_z1 = new_like(z0), new_like(z1)
    g_variance = None if variance.log_variance is None else new_like(variance.log_variance)
    with on(z0):
        _gap_sums_backward[triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns)](
            dense(grad), z0, z1, *variance[:2], dense(row), g_z0, g_z1, g_variance,
            n, d, *z0.stride(), *z1.stride(), *variance.strides, tile.rows, tile.columns, **tile.options,
        )  # fmt: skip
    return g_z0.to(gap.z0.dtype), g_z1.to(gap.z1.dtype), in_dtype_of(gap.log_variance, g_variance)
