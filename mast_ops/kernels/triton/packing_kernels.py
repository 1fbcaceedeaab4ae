"""Triton kernels that pack the rows of z under every mask, and take gradients of packed rows back.

Every launch goes through several masks: a program works under one of them, and :func:`unpack` sums over all.
"""

import triton
import triton.language as tl

from mast_ops.kernels.contract import LENGTH

_EPS: tl.constexpr = tl.constexpr(1e-12)  # that of F.normalize
UNIT: tl.constexpr = tl.constexpr(LENGTH)  # of packed rows

_kernel = triton.jit(
    # Views of tensors that hold one row a mask: not always aligned, and not worth a second kernel when they are.
    do_not_specialize_on_alignment=[
        *("bounds", "row_bounds", "column_bounds", "count", "mask", "kept", "slot", "factor"),
        *("row_lse", "row_share", "row_positives", "column_lse", "column_share", "column_positives"),
    ],
    do_not_specialize=["tiles", "splits", "masks", "of_rows", "of_columns"],
)


@triton.jit
def _depth(count, BLOCK_D: tl.constexpr):
    """Dimensions that products go through: those kept, in whole blocks, at least one (it carries a NaN)."""
    return tl.maximum(tl.cdiv(tl.load(count), BLOCK_D), 1) * BLOCK_D


@triton.jit
def _segment(bounds, r):
    """The rows of mask r: the first one, and how many."""
    first = tl.load(bounds + 2 * r)
    return first, tl.load(bounds + 2 * r + 1) - first


@_kernel
def pack(
    z, order, bounds, mask, kept, count, packed, inverse_norm, stride_n, stride_d, D, width, padded,
    TILE: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """``packed = UNIT z m / |z m|`` in the dimensions ``kept``; zeros up to whole blocks and whole tiles of rows."""
    r = tl.program_id(1)
    first, total = _segment(bounds, r)
    start = tl.program_id(0) * BLOCK_M
    if start >= tl.cdiv(total, TILE) * TILE:
        return
    rows = start + tl.arange(0, BLOCK_M)
    live = (rows < total)[:, None]
    z += tl.load(order + first + rows, mask=rows < total, other=0)[:, None] * stride_n
    mask += r * D

    # Over all dimensions: a NaN or an infinity where the mask is zero is a NaN here, and then in all of the row.
    square = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, D, BLOCK_D):
        dims = (d + tl.arange(0, BLOCK_D)).to(tl.int64)
        x = tl.load(z + dims[None, :] * stride_d, mask=live & (dims < D)[None, :], other=0).to(tl.float32)
        x *= tl.load(mask + dims, mask=dims < D, other=0)[None, :]
        square += tl.sum(x * x, 1)
    norm = tl.sqrt(square)
    inverse = 1 / tl.where(norm < _EPS, _EPS, norm)
    tl.store(inverse_norm + r * padded + rows, inverse)

    packed += (r.to(tl.int64) * padded + rows)[:, None] * width
    depth = _depth(count + r, STEP)
    if WHOLE:
        depth = width
    for d in range(0, depth, BLOCK_D):
        slots = d + tl.arange(0, BLOCK_D)
        inside = slots < tl.load(count + r)
        dims = tl.load(kept + r * D + slots, mask=inside, other=0)
        x = tl.load(z + dims[None, :] * stride_d, mask=live & inside[None, :], other=0).to(tl.float32)
        x *= tl.load(mask + dims, mask=inside, other=0)[None, :]
        tl.store(packed + slots[None, :], (x * inverse[:, None] * UNIT).to(packed.dtype.element_ty))


@triton.jit
def _sum_of_parts(grad, splits, part, inside, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for _ in range(splits):
        total += tl.load(grad, mask=inside, other=0)
        grad += part
    return total


@_kernel
def align(
    bounds, count, packed, grad, alignment, width, padded, splits, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``alignment``: of each row of length 1, its product with its gradient."""
    r = tl.program_id(1)
    _, total = _segment(bounds, r)
    start = tl.program_id(0) * BLOCK_M
    if start >= total:
        return
    rows = start + tl.arange(0, BLOCK_M)
    live = (rows < total)[:, None]
    packed += (r.to(tl.int64) * padded + rows)[:, None] * width
    grad += (r.to(tl.int64) * splits * padded + rows)[:, None] * width
    dot = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, _depth(count + r, BLOCK_D), BLOCK_D):
        slots = d + tl.arange(0, BLOCK_D)[None, :]
        pull = _sum_of_parts(grad + slots, splits, padded.to(tl.int64) * width, live, BLOCK_M, BLOCK_D)
        dot += tl.sum(pull * tl.load(packed + slots, mask=live, other=0).to(tl.float32), 1)
    tl.store(alignment + r * padded + rows, dot / UNIT, mask=rows < total)


@_kernel
def unpack(
    z, order, bounds, mask, slot, packed, inverse_norm, grad, alignment, factor, g_z, g_mask,
    stride_n, stride_d, N, D, width, padded, splits, masks,
    ADD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes a block of ``g_z``, or adds to it, from all masks; a part of each ``g_mask``."""
    start = tl.program_id(0) * BLOCK_M
    places = start + tl.arange(0, BLOCK_M)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = dims < D
    both = (places < N)[:, None] & inside[None, :]
    source = tl.load(order + places, mask=places < N, other=0)[:, None]
    x = tl.load(z + source * stride_n + dims.to(tl.int64)[None, :] * stride_d, mask=both, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for r in range(masks):
        first, size = _segment(bounds, r)
        of_mask = tl.zeros((BLOCK_D,), tl.float32)
        if (start < first + size) & (start + BLOCK_M > first):
            rows = places - first
            live = (rows >= 0) & (rows < size)
            m = tl.load(mask + r * D + dims, mask=inside, other=0)
            keep = live[:, None] & (m != 0)[None, :]
            at = rows.to(tl.int64)[:, None] * width + tl.load(slot + r * D + dims, mask=inside, other=0)[None, :]
            step = padded.to(tl.int64) * width
            pull = _sum_of_parts(grad + r * splits * step + at, splits, step, keep, BLOCK_M, BLOCK_D)
            dot = tl.load(alignment + r * padded + rows, mask=live, other=0)
            bad = (dot * 0)[:, None]  # NaN where it is not finite: what no mask keeps must not look finite either
            inverse = tl.load(inverse_norm + r * padded + rows, mask=live, other=0)
            dot = tl.where(inverse < 0.999 / _EPS, dot / UNIT, 0.0)[:, None]  # a norm below eps is a constant
            pull -= dot * tl.load(packed + r * step + at, mask=keep, other=0).to(tl.float32)
            pull = tl.where(keep, pull * (inverse * tl.load(factor + r))[:, None], 0.0) + bad
            of_mask += tl.sum(tl.where(live[:, None], pull * x, 0.0), 0)
            total += pull * m[None, :]
        tl.store(g_mask + (r * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * D + dims, of_mask, mask=inside)
    g_z += source * D + dims[None, :]
    if ADD:
        total += tl.load(g_z, mask=both, other=0)
    tl.store(g_z, total.to(g_z.dtype.element_ty), mask=both)
