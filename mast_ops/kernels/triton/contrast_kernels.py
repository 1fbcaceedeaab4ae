"""Triton kernels of :mod:`mast_ops.kernels.triton.contrast` on packed rows: scores, and their gradients.

Every launch goes through several masks: a program works under one of them.
"""

import triton
import triton.language as tl

from mast_ops.kernels.triton.packing_kernels import UNIT, _depth, _kernel, _segment

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
RANGE: tl.constexpr = tl.constexpr(64.0)
"""The largest inverse temperature at which exponentials need no maximum: exp(64) over a million candidates is finite,
exp(-64) is a normal number. One exponential then serves anchors and candidates."""


@triton.jit
def _elsewhere(count, BLOCK_D: tl.constexpr, LEAST: tl.constexpr, WHOLE: tl.constexpr):
    """Whether another launch has the mask, where there is one for every size of whole rows."""
    other = tl.load(count) < 0
    if WHOLE:
        other = tl.load(count) > BLOCK_D
        if BLOCK_D > LEAST:
            other = other | (2 * tl.load(count) <= BLOCK_D)
    return other


@triton.jit
def _scores(a, b, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """Products of rows at the pointers ``a`` and ``b``, to the first block of dimensions, over all blocks."""
    score = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in range(0, depth, BLOCK_D):
        score = tl.dot(tl.load(a + d), tl.trans(tl.load(b + d)), score, input_precision=PRECISION)
    return score


@triton.jit
def _given(x, rows, columns, width):
    """Where a tile stands in a matrix of ``width`` columns."""
    return x + rows.to(tl.int64)[:, None] * width + columns[None, :]


@_kernel
def logsumexp(
    a, b, bounds, count, low, high, itself, inverse_temperature, row_lse, row_sum, column_lse, column_sum,
    C, width, span, tiles, a_rows, b_rows, part, of_rows, first_row, first_column, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LEAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Tiles of anchors against a span of candidates: logsumexp of the scores, sum of those of positives.

    Where exponentials need no maximum, their sum in place of the logsumexp.

    ``WHOLE``: rows are one block of dimensions, and the tile of anchors stays on the chip.

    Without ``b``, ``a`` holds products that the library made, ``width`` of a row, from ``first_row`` and
    ``first_column`` on. Launches come by columns and then by rows: what one leaves for candidates, one of the next rows
    adds to.

    With ``column_lse`` also over the anchors of all ``tiles``, for each candidate: every tile adds to what the one
    before it left in memory. ``column_sum`` is zero before. All in units of log2.
    """
    r = tl.program_id(2)
    first, total = _segment(bounds, r)
    start = tl.program_id(0) * tiles * BLOCK_M
    if b is None:
        start += first_row
    if (start >= total) | _elsewhere(count + r, BLOCK_D, LEAST, WHOLE):
        return
    stop = tl.minimum(start + tiles * BLOCK_M, total)
    depth = _depth(count + r, BLOCK_D)
    scale = tl.load(inverse_temperature)
    fixed = tl.abs(scale) <= RANGE
    scale *= LOG2E / (UNIT * UNIT)
    nothing = tl.where(fixed, 0.0, -float("inf"))  # in a sum of exponentials, or in a logsumexp
    if b is not None:
        inner = tl.arange(0, BLOCK_D)
        a += r.to(tl.int64) * a_rows * width + inner[None, :]
        b += r.to(tl.int64) * b_rows * width + inner[None, :]
    if column_lse is not None:
        column_lse += (r * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * C
        column_sum += (r * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * C
    row_lse += r * of_rows + tl.program_id(1) * part + first
    row_sum += r * of_rows + tl.program_id(1) * part + first
    span_start = tl.program_id(1) * span
    span_stop = tl.minimum(span_start + span, C)
    if b is None:
        span_stop = first_column + tl.minimum(tl.minimum(span_start + span, width), C - first_column)
        span_start += first_column

    for start_m in range(start, stop, BLOCK_M):
        rows = start_m + tl.arange(0, BLOCK_M)
        live = rows < total
        last = first + tl.minimum(start_m + BLOCK_M, total) - 1
        place = tl.minimum(first + rows, last)
        begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
        tile_begin, tile_end = tl.load(low + first + start_m), tl.load(high + last)
        if itself is not None:
            own = tl.load(itself + place)[:, None]
            own_first, own_last = tl.load(itself + first + start_m), tl.load(itself + last)

        if b is not None:
            a_place = a + rows.to(tl.int64)[:, None] * width
            if WHOLE:
                a_tile = tl.load(a_place)
        top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        mass = tl.zeros((BLOCK_M,), tl.float32)
        positive = tl.zeros((BLOCK_M,), tl.float32)
        if column_lse is not None:
            tl.debug_barrier()  # the threads that read are not those that wrote
        for start_n in range(span_start, span_stop, BLOCK_N):
            columns = start_n + tl.arange(0, BLOCK_N)
            if column_lse is not None:
                later = (columns < C) & (start_m > start)
                if b is None:
                    later = (columns < C) & (first_row > 0)
                column = tl.load(column_lse + columns, mask=later, other=nothing)
            if b is None:
                score = tl.load(_given(a, rows - first_row, columns - first_column, width)) * scale
            else:
                b_place = b + columns.to(tl.int64)[:, None] * width
                if WHOLE:
                    score = tl.dot(a_tile, tl.trans(tl.load(b_place)), input_precision=PRECISION) * scale
                else:
                    score = _scores(a_place, b_place, depth, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * scale

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

            if (start_n < tile_end) & (start_n + BLOCK_N > tile_begin):
                hit = live[:, None] & (columns[None, :] >= begin) & (columns[None, :] < end)
                if itself is not None:
                    hit = hit & (columns[None, :] != own)
                hits = tl.where(hit, score, 0.0)
                positive += tl.sum(hits, 1)
                if column_lse is not None:
                    before = tl.load(column_sum + columns, mask=columns < C, other=0)
                    tl.store(column_sum + columns, before + tl.sum(hits, 0), mask=columns < C)

            if fixed:
                power = tl.exp2(score)
                mass += tl.sum(power, 1)
                if column_lse is not None:
                    column += tl.sum(power, 0)
            else:
                peak = tl.maximum(top, tl.max(score, 1))
                shift = tl.where(peak == -float("inf"), 0.0, peak)  # nothing seen yet: infinities must not meet
                mass = mass * tl.exp2(top - shift) + tl.sum(tl.exp2(score - shift[:, None]), 1)
                top = peak
                if column_lse is not None:
                    ridge = tl.maximum(column, tl.max(score, 0))
                    ridge = tl.where(ridge == -float("inf"), 0.0, ridge)
                    sums = tl.exp2(column - ridge) + tl.sum(tl.exp2(score - ridge[None, :]), 0)
                    column = ridge + tl.log2(sums)
            if column_lse is not None:
                tl.store(column_lse + columns, column, mask=columns < C)

        if not fixed:
            mass = tl.where(top == -float("inf"), 0.0, top) + tl.log2(mass)
        tl.store(row_lse + rows, mass, mask=live)
        tl.store(row_sum + rows, positive, mask=live)


@_kernel
def gradient(
    a, b, row_bounds, column_bounds, count, low, high, itself, inverse_temperature, bias,
    row_lse, row_share, row_positives, column_lse, column_share, column_positives, grad,
    width, span, splits, a_rows, b_rows, of_rows, of_columns, first_row, first_column,
    SWAPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr, LEAST: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """``grad = W b / UNIT`` for a tile of rows and a slice of dimensions, W the gradient of the scores, made anew.

    The rows are anchors and b holds candidates, or the reverse when ``SWAPPED``. ``row_lse`` is there when the
    rows' own losses count, ``column_lse`` when those of the other side do: logsumexps where exponentials need them,
    else what multiplies these. With ``bias`` these are sigmoids.

    Without ``b``, ``a`` holds products as it does for :func:`logsumexp`, and ``grad`` takes W itself, rows
    ``a_rows`` apart, for the library to multiply.
    """
    r = tl.program_id(2)
    row_first, total_m = _segment(row_bounds, r)
    column_first, total_n = _segment(column_bounds, r)
    depth = _depth(count + r, BLOCK_D)
    start_m = tl.program_id(0) * BLOCK_M
    if b is None:
        start_m += first_row
    part, start_s = tl.program_id(1), 0
    if not WHOLE:
        part, start_s = part % splits, part // splits * SLICE
    if (start_m >= total_m) | (start_s >= depth) | _elsewhere(count + r, BLOCK_D, LEAST, WHOLE):
        return
    rows = start_m + tl.arange(0, BLOCK_M)
    place = row_first + tl.minimum(rows, total_m - 1)
    if row_lse is not None:
        row = r * of_rows + place
        pull, share = tl.load(row_lse + row), tl.load(row_share + row)
    if not SWAPPED:
        last = row_first + tl.minimum(start_m + BLOCK_M, total_m) - 1
        begin, end = tl.load(low + place)[:, None], tl.load(high + place)[:, None]
        tile_begin, tile_end = tl.load(low + row_first + start_m), tl.load(high + last)
        if itself is not None:
            own = tl.load(itself + place)[:, None]
            own_first, own_last = tl.load(itself + row_first + start_m), tl.load(itself + last)

    scale = tl.load(inverse_temperature)
    fixed = tl.abs(scale) <= RANGE
    scale *= LOG2E / (UNIT * UNIT)
    if bias is not None:
        offset = tl.load(bias) * LOG2E
    span_start = part * span
    span_stop = tl.minimum(span_start + span, total_n)
    if b is None:
        span_stop = first_column + tl.minimum(tl.minimum(span_start + span, width), total_n - first_column)
        span_start += first_column
    else:
        inner, outer = tl.arange(0, BLOCK_D), start_s + tl.arange(0, SLICE)
        a += (r.to(tl.int64) * a_rows + rows)[:, None] * width + inner[None, :]
        b += r.to(tl.int64) * b_rows * width
        if WHOLE:
            a_tile = tl.load(a)
        result = tl.zeros((BLOCK_M, SLICE), tl.float32)
    for start_n in range(span_start, span_stop, BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        column_place = column_first + tl.minimum(columns, total_n - 1)
        if b is not None:
            b_place = b + columns.to(tl.int64)[:, None] * width
        if b is None:
            score = tl.load(_given(a, rows - first_row, columns - first_column, width)) * scale
        elif WHOLE:
            values = tl.load(b_place + inner[None, :])
            score = tl.dot(a_tile, tl.trans(values), input_precision=PRECISION) * scale
        else:
            score = _scores(a, b_place + inner[None, :], depth, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * scale

        pulls = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if row_lse is not None:
            pulls += pull[:, None]
        if column_lse is not None:
            pulls += tl.load(column_lse + r * of_columns + column_place)[None, :]
        if bias is not None:
            weight = pulls / (1 + tl.exp2(-score - offset))
        else:
            weight = pulls
            if fixed:
                weight = pulls * tl.exp2(score)
            else:
                weight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                if row_lse is not None:
                    given = share * tl.load(row_positives + place)
                    weight += given[:, None] * tl.exp2(score - pull[:, None])
                if column_lse is not None:
                    lse_n = tl.load(column_lse + r * of_columns + column_place)
                    share_n = tl.load(column_share + r * of_columns + column_place)
                    given_n = share_n * tl.load(column_positives + column_place)
                    weight += given_n[None, :] * tl.exp2(score - lse_n[None, :])

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
                shares += tl.load(column_share + r * of_columns + column_place)[None, :]
            weight -= tl.where((position >= begin) & (position < end), shares, 0.0)

        ragged = start_n + BLOCK_N > total_n
        if itself is not None:
            ragged = ragged | ((here <= own_last) & (here + block > own_first))
        if ragged:
            keep = (columns < total_n)[None, :]
            if itself is not None:
                keep = keep & (position != own)
            weight = tl.where(keep, weight, 0.0)

        if b is None:
            tl.store(_given(grad, rows - first_row, columns - first_column, a_rows), weight.to(grad.dtype.element_ty))
        else:
            if not WHOLE:
                values = tl.load(
                    b_place + outer[None, :], mask=(outer < depth)[None, :], other=0
                )  # past it nothing is packed
            result = tl.dot(weight.to(values.dtype), values, result, input_precision=PRECISION)
    if b is not None:
        grad += ((r * splits + part).to(tl.int64) * a_rows + rows)[:, None] * width
        tl.store(grad + outer[None, :], result / UNIT)
