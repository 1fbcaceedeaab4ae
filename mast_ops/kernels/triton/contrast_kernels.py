"""The four kernels of :mod:`mast_ops.kernels.triton.contrast`, in the order in which they run."""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_EPS: tl.constexpr = tl.constexpr(1e-12)  # that of F.normalize

# Rows of the tensors that hold one row a mask: not always aligned, and not worth a second kernel when they are.
_kernel = triton.jit(
    do_not_specialize_on_alignment=[
        *("bounds", "row_bounds", "column_bounds", "count", "mask", "kept", "factor", "row_lse", "row_sum"),
        *("row_pull", "row_share", "column_lse", "column_sum", "column_pull", "column_share"),
    ]
)


@triton.jit
def _depth(count, BLOCK_D: tl.constexpr):
    """Dimensions that products go through: those kept, in whole blocks, at least one (it carries a NaN)."""
    return tl.maximum(tl.cdiv(tl.load(count), BLOCK_D), 1) * BLOCK_D


@triton.jit
def _scores(a, b, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """Products of rows at the pointers ``a`` and ``b``, to the first block of dimensions, over all blocks."""
    score = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in range(0, depth, BLOCK_D):
        score = tl.dot(tl.load(a + d), tl.trans(tl.load(b + d)), score, input_precision=PRECISION)
    return score


@_kernel
def pack(
    z, order, bounds, mask, kept, count, packed, inverse_norm, stride_n, stride_d, D, width,
    TILE: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``packed = z m / |z m|`` in the dimensions ``kept``; zeros up to whole blocks of them and whole tiles of rows."""
    first = tl.load(bounds)
    total = tl.load(bounds + 1) - first
    start = tl.program_id(0) * BLOCK_M
    if start >= tl.cdiv(total, TILE) * TILE:
        return
    rows = start + tl.arange(0, BLOCK_M)
    live = (rows < total)[:, None]
    z += tl.load(order + first + rows, mask=rows < total, other=0)[:, None] * stride_n

    # Over all dimensions: a NaN or an infinity where the mask is zero is a NaN here, and then in all of the row.
    square = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, D, BLOCK_D):
        dims = (d + tl.arange(0, BLOCK_D)).to(tl.int64)
        x = tl.load(z + dims[None, :] * stride_d, mask=live & (dims < D)[None, :], other=0).to(tl.float32)
        x *= tl.load(mask + dims, mask=dims < D, other=0)[None, :]
        square += tl.sum(x * x, 1)
    norm = tl.sqrt(square)
    inverse = 1 / tl.where(norm < _EPS, _EPS, norm)
    tl.store(inverse_norm + rows, inverse)

    packed += rows.to(tl.int64)[:, None] * width
    for d in range(0, _depth(count, STEP), BLOCK_D):
        slots = d + tl.arange(0, BLOCK_D)
        inside = slots < tl.load(count)
        dims = tl.load(kept + slots, mask=inside, other=0)
        x = tl.load(z + dims[None, :] * stride_d, mask=live & inside[None, :], other=0).to(tl.float32)
        x *= tl.load(mask + dims, mask=inside, other=0)[None, :]
        tl.store(packed + slots[None, :], (x * inverse[:, None]).to(packed.dtype.element_ty))


@_kernel
def logsumexp(
    a, b, bounds, count, low, high, itself, inverse_temperature, row_lse, row_sum, column_lse, column_sum,
    C, width, span, rows_stride,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of anchors against a span of candidates: logsumexp of the scores, sum of those of positives.

    ``WHOLE``: rows are one block of dimensions, and the tile of anchors stays on the chip.

    With ``column_lse`` also over the anchors of the tile, for each candidate. Everything in units of log2 inside.
    """
    first = tl.load(bounds)
    total = tl.load(bounds + 1) - first
    start_m = tl.program_id(0) * BLOCK_M
    if start_m >= total:
        return
    rows = start_m + tl.arange(0, BLOCK_M)
    live = rows < total
    last = first + tl.minimum(start_m + BLOCK_M, total) - 1
    place = tl.minimum(first + rows, last)
    begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
    tile_begin, tile_end = tl.load(low + first + start_m), tl.load(high + last)
    if itself is not None:
        own = tl.load(itself + place)[:, None]
        own_first, own_last = tl.load(itself + first + start_m), tl.load(itself + last)

    depth = _depth(count, BLOCK_D)
    scale = tl.load(inverse_temperature) * LOG2E
    inner = tl.arange(0, BLOCK_D)
    a += rows.to(tl.int64)[:, None] * width + inner[None, :]
    if WHOLE:
        a_tile = tl.load(a)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    positive = tl.zeros((BLOCK_M,), tl.float32)
    span_start = tl.program_id(1) * span
    for start_n in range(span_start, tl.minimum(span_start + span, C), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        b_rows = b + columns.to(tl.int64)[:, None] * width + inner[None, :]
        if WHOLE:
            score = tl.dot(a_tile, tl.trans(tl.load(b_rows)), input_precision=PRECISION) * scale
        else:
            score = _scores(a, b_rows, depth, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * scale

        ragged = start_n + BLOCK_N > C
        if column_lse is not None:
            ragged = ragged | (start_m + BLOCK_M > total)
        if itself is not None:
            ragged = ragged | ((start_n <= own_last) & (start_n + BLOCK_N > own_first))
        if ragged:
            keep = live[:, None] & (columns < C)[None, :]
            if itself is not None:
                keep = keep & (columns[None, :] != own)
            score = tl.where(keep, score, -float("inf"))

        column_positive = tl.zeros((BLOCK_N,), tl.float32)
        if (start_n < tile_end) & (start_n + BLOCK_N > tile_begin):
            hit = live[:, None] & (columns[None, :] >= begin) & (columns[None, :] < end)
            if itself is not None:
                hit = hit & (columns[None, :] != own)
            hits = tl.where(hit, score, 0.0)
            positive += tl.sum(hits, 1)
            column_positive += tl.sum(hits, 0)

        peak = tl.maximum(top, tl.max(score, 1))
        shift = tl.where(peak == -float("inf"), 0.0, peak)  # nothing seen yet: infinities must not meet
        mass = mass * tl.exp2(top - shift) + tl.sum(tl.exp2(score - shift[:, None]), 1)
        top = peak
        if column_lse is not None:
            ridge = tl.max(score, 0)
            column = ridge + tl.log2(tl.sum(tl.exp2(score - ridge[None, :]), 0))
            part = tl.program_id(0).to(tl.int64) * C + columns
            tl.store(column_lse + part, column / LOG2E, mask=columns < C)
            tl.store(column_sum + part, column_positive / LOG2E, mask=columns < C)

    part = tl.program_id(1) * rows_stride + first + rows
    tl.store(row_lse + part, (tl.where(top == -float("inf"), 0.0, top) + tl.log2(mass)) / LOG2E, mask=live)
    tl.store(row_sum + part, positive / LOG2E, mask=live)


@_kernel
def gradient(
    a, b, row_bounds, column_bounds, count, low, high, itself, inverse_temperature, bias,
    row_lse, row_pull, row_share, column_lse, column_pull, column_share, grad,
    width, span, part,
    SWAPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """``grad = W b`` for a tile of rows and a slice of dimensions, W the gradient of the scores, made anew.

    The rows are anchors and b holds candidates, or the reverse when ``SWAPPED``. ``row_lse`` is there when the
    rows' own losses count, ``column_lse`` when those of the other side do. With ``bias`` these are sigmoids, and the
    logsumexps are not read.
    """
    row_first, column_first = tl.load(row_bounds), tl.load(column_bounds)
    total_m, total_n = tl.load(row_bounds + 1) - row_first, tl.load(column_bounds + 1) - column_first
    depth = _depth(count, BLOCK_D)
    start_m, start_s = tl.program_id(0) * BLOCK_M, tl.program_id(1) * SLICE
    if (start_m >= total_m) | (start_s >= depth):
        return
    rows = start_m + tl.arange(0, BLOCK_M)
    place = row_first + tl.minimum(rows, total_m - 1)
    if row_lse is not None:
        lse, pull, share = tl.load(row_lse + place), tl.load(row_pull + place), tl.load(row_share + place)
    if not SWAPPED:
        last = row_first + tl.minimum(start_m + BLOCK_M, total_m) - 1
        begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
        tile_begin, tile_end = tl.load(low + row_first + start_m), tl.load(high + last)
        if itself is not None:
            own = tl.load(itself + place)[:, None]
            own_first, own_last = tl.load(itself + row_first + start_m), tl.load(itself + last)

    scale = tl.load(inverse_temperature) * LOG2E
    if bias is not None:
        offset = tl.load(bias) * LOG2E
    inner, outer = tl.arange(0, BLOCK_D), start_s + tl.arange(0, SLICE)
    a += rows.to(tl.int64)[:, None] * width + inner[None, :]
    if WHOLE:
        a_tile = tl.load(a)
    result = tl.zeros((BLOCK_M, SLICE), tl.float32)
    span_start = tl.program_id(2) * span
    for start_n in range(span_start, tl.minimum(span_start + span, total_n), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        column_place = column_first + tl.minimum(columns, total_n - 1)
        b_rows = b + columns.to(tl.int64)[:, None] * width
        if WHOLE:
            values = tl.load(b_rows + inner[None, :])
            score = tl.dot(a_tile, tl.trans(values), input_precision=PRECISION) * scale
        else:
            score = _scores(a, b_rows + inner[None, :], depth, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * scale

        weight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if bias is not None:
            score = 1 / (1 + tl.exp2(-score - offset))
        if row_lse is not None:
            weight += pull[:, None] * (tl.exp2(score - lse[:, None]) if bias is None else score)
        if column_lse is not None:
            lse_n, pull_n = tl.load(column_lse + column_place), tl.load(column_pull + column_place)
            weight += pull_n[None, :] * (tl.exp2(score - lse_n[None, :]) if bias is None else score)

        if SWAPPED:
            position, here, block = rows[:, None], start_m, BLOCK_M
            last = column_first + tl.minimum(start_n + BLOCK_N, total_n) - 1
            begin, end = tl.load(low + column_place)[None, :], tl.load(high + column_place)[None, :]
            tile_begin, tile_end = tl.load(low + column_first + start_n), tl.load(high + last)
            if itself is not None:
                own = tl.load(itself + column_place)[None, :]
                own_first, own_last = tl.load(itself + column_first + start_n), tl.load(itself + last)
        else:
            position, here, block = columns[None, :], start_n, BLOCK_N

        if (here < tile_end) & (here + block > tile_begin):
            shares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            if row_lse is not None:
                shares += share[:, None]
            if column_lse is not None:
                shares += tl.load(column_share + column_place)[None, :]
            weight -= tl.where((position >= begin) & (position < end), shares, 0.0)

        ragged = start_n + BLOCK_N > total_n
        if itself is not None:
            ragged = ragged | ((here <= own_last) & (here + block > own_first))
        if ragged:
            keep = (columns < total_n)[None, :]
            if itself is not None:
                keep = keep & (position != own)
            weight = tl.where(keep, weight, 0.0)

        if not WHOLE:
            values = tl.load(
                b_rows + outer[None, :], mask=(outer < depth)[None, :], other=0
            )  # past it nothing is packed
        result = tl.dot(weight.to(values.dtype), values, result, input_precision=PRECISION)
    grad += tl.program_id(2).to(tl.int64) * part + rows.to(tl.int64)[:, None] * width
    tl.store(grad + outer[None, :], result)


@_kernel
def unpack(
    z, order, bounds, mask, kept, count, packed, inverse_norm, grad, factor, g_z, g_mask, alignment,
    stride_n, stride_d, D, width, part, splits,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds to ``g_z``; one row of ``g_mask`` and one of ``alignment``, the sum of rows times gradients, a program."""
    first = tl.load(bounds)
    total = tl.load(bounds + 1) - first
    start = tl.program_id(0) * BLOCK_M
    if start >= total:
        return
    rows = start + tl.arange(0, BLOCK_M)
    live = (rows < total)[:, None]
    depth = _depth(count, BLOCK_D)
    place = rows.to(tl.int64)[:, None] * width

    dot = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, depth, BLOCK_D):
        slots = place + d + tl.arange(0, BLOCK_D)[None, :]
        pull = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        part_grad = grad
        for _ in range(splits):
            pull += tl.load(part_grad + slots, mask=live, other=0)
            part_grad += part
        dot += tl.sum(pull * tl.load(packed + slots, mask=live, other=0).to(tl.float32), 1)
    tl.store(alignment + tl.program_id(0), tl.sum(dot, 0))
    source = tl.load(order + first + rows, mask=rows < total, other=0)[:, None]
    g_mask += tl.program_id(0).to(tl.int64) * D
    bad = dot * 0  # NaN where it is not finite
    if tl.sum(bad, 0) != 0:
        for d in range(0, D, BLOCK_D):  # what no mask keeps must not look finite either
            dims = d + tl.arange(0, BLOCK_D)
            target = g_z + source * D + dims[None, :]
            inside = dims < D
            both = live & inside[None, :]
            tl.store(target, tl.load(target, mask=both, other=0) + bad[:, None], mask=both)
            tl.store(g_mask + dims, tl.zeros((BLOCK_D,), tl.float32) + tl.sum(bad, 0), mask=inside)

    inverse = tl.load(inverse_norm + rows)
    dot = tl.where(inverse < 0.999 / _EPS, dot, 0.0)[:, None]  # a norm below eps is a constant
    scale = (inverse * tl.load(factor))[:, None]
    for d in range(0, depth, BLOCK_D):
        ordinals = d + tl.arange(0, BLOCK_D)
        inside = ordinals < tl.load(count)
        slots = place + ordinals[None, :]
        pull = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        part_grad = grad
        for _ in range(splits):
            pull += tl.load(part_grad + slots, mask=live, other=0)
            part_grad += part
        pull = (pull - dot * tl.load(packed + slots, mask=live, other=0).to(tl.float32)) * scale
        dims = tl.load(kept + ordinals, mask=inside, other=0)
        both = live & inside[None, :]
        x = tl.load(z + source * stride_n + dims[None, :] * stride_d, mask=both, other=0).to(tl.float32)
        tl.store(g_mask + dims, tl.sum(pull * x, 0), mask=inside)
        target = g_z + source * D + dims[None, :]
        pull *= tl.load(mask + dims, mask=inside, other=0)[None, :]
        tl.store(target, tl.load(target, mask=both, other=0) + pull, mask=both)
