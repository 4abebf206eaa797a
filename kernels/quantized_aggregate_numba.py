"""CPU code of `quantized_aggregate`: a block of channels of one row at a time, in registers.

Sums run in int16 lanes, twice as many to a register as int32, and are moved to int32 before they
can overflow.  The float epilogue follows in the same registers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled, half_lanes
from gnnfx.kernels.csr import reject_large
from gnnfx.kernels.csr_numba import piece_start, source, source_ahead
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    FIRST_FREE,
    PIECES,
    ROW_SCALE,
    ROWS,
    epilogue_arguments,
    finish,
)
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize_numba import pack_codes, unpack_codes
from gnnfx.kernels.threads import Kernel, address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    greater,
    half_bytes,
    interleave,
    lesser,
    load_i8,
    load_i8_like,
    prefetch,
    quarter_bytes,
    read_f32,
    read_i8,
    read_i32,
    splat_f32_like,
    splat_i8,
    splat_i16,
    splat_i32,
    splat_i32_like,
    take_piece,
    to_f32,
    widen_i16,
    widen_i32,
    widen_i64,
    widen_unsigned_i32,
)

X, SRC, ROWPTR, EDGES, SELF_X, SCALE, ZERO_POINT, MEAN, SELF_WEIGHT, WEIGHT, WEIGHT_SCALE = range(
    FIRST_FREE, FIRST_FREE + 11
)
# The greatest sums that fit: 256 * 128 int16, 17 * 15 or 85 * 3 uint8, and 65536 * 128 * 255 int32.
_FLUSH = 256
_FLUSH_HALF_BYTES = 17
_FLUSH_QUARTER_BYTES = 85
_FLUSH_WEIGHTED = 65536
# Fewer channels than a block of lanes that fills bytes.
_LEAST_PACKED = {4: 4, 2: 16}
# Eight operations on int8 lanes take the time that the thread pool counts as one.
_OPERATIONS_SHIFT = 3


@njit(forceinline=True)
def _finish_row(total, a, row, channel, degree):
    """Scale the result of a row, rounded to floats, add the row itself, and finish."""
    scale = read_f32(a[SCALE])
    multiplier = scale
    if a[WEIGHT_SCALE] != 0:
        multiplier = multiplier * read_f32(a[WEIGHT_SCALE])
    if a[MEAN] != 0:
        multiplier = multiplier / np.float32(max(degree, 1))
    if a[ROW_SCALE] != 0:
        multiplier = multiplier * read_f32(a[ROW_SCALE] + 4 * row)
    y = total * splat_f32_like(multiplier, total)
    if a[SELF_WEIGHT] != 0:
        codes = load_i8_like(a[SELF_X] + row * a[CHANNELS] + channel, y)
        zero_point = read_i32(a[ZERO_POINT])
        steps = to_f32(widen_i32(codes) - splat_i32_like(zero_point, y))
        own = splat_f32_like(scale, y) * steps
        y = y + splat_f32_like(read_f32(a[SELF_WEIGHT]), y) * own
    finish(y, a, row, channel)


def _sum(lanes):
    """Unweighted sum or mean."""

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge = a[EDGES] - 1
        zero_point = read_i32(a[ZERO_POINT])
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    column = x + channel
                    total = splat_i32(0, lanes)
                    edge = first
                    while edge < stop:
                        flush = min(edge + _FLUSH, stop)
                        part = splat_i16(0, lanes)
                        while edge < flush:
                            prefetch(column + source_ahead(src, edge, last_edge) * channels, lanes)
                            codes = load_i8(column + source(src, edge) * channels, lanes)
                            part = part + widen_i16(codes)
                            edge += 1
                        total = total + widen_i32(part)
                    total = total - splat_i32((stop - first) * zero_point, lanes)
                    _finish_row(to_f32(total), a, row, channel, stop - first)
                    channel += lanes

    return kernel


def _sum_pair(lanes):
    """As `_sum` of more than `lanes` channels and at most twice as many, in one sweep.

    The second block of lanes ends where the row ends and overlaps the first.
    """
    both = 2 * lanes

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge, second = a[EDGES] - 1, channels - lanes
        zero_point = read_i32(a[ZERO_POINT])
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                left, right = splat_i32(0, lanes), splat_i32(0, lanes)
                edge = first
                while edge < stop:
                    flush = min(edge + _FLUSH, stop)
                    left_part, right_part = splat_i16(0, lanes), splat_i16(0, lanes)
                    while edge < flush:
                        prefetch(x + source_ahead(src, edge, last_edge) * channels, both)
                        codes = x + source(src, edge) * channels
                        left_part = left_part + widen_i16(load_i8(codes, lanes))
                        right_part = right_part + widen_i16(load_i8(codes + second, lanes))
                        edge += 1
                    left, right = left + widen_i32(left_part), right + widen_i32(right_part)
                distance = splat_i32((stop - first) * zero_point, lanes)
                _finish_row(to_f32(left - distance), a, row, 0, stop - first)
                _finish_row(to_f32(right - distance), a, row, second, stop - first)

    return kernel


def _sum_half_bytes(lanes):
    """Unweighted sum or mean of packed 4-bit codes of an even number of channels.

    Codes are made unsigned by adding 8, which is taken off again once a row.
    """
    half = lanes // 2

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge, row_bytes = a[EDGES] - 1, channels // 2
        zero_point = read_i32(a[ZERO_POINT]) + 8
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    column = x + channel // 2
                    evens, odds = splat_i32(0, half), splat_i32(0, half)
                    edge = first
                    while edge < stop:
                        flush = min(edge + _FLUSH_HALF_BYTES, stop)
                        even, odd = splat_i8(0, half), splat_i8(0, half)
                        while edge < flush:
                            prefetch(column + source_ahead(src, edge, last_edge) * row_bytes, half)
                            packed = load_i8(column + source(src, edge) * row_bytes, half)
                            low, high = half_bytes(packed)
                            even, odd = even + low, odd + high
                            edge += 1
                        evens = evens + widen_unsigned_i32(even)
                        odds = odds + widen_unsigned_i32(odd)
                    total = interleave(evens, odds)
                    total = total - splat_i32((stop - first) * zero_point, lanes)
                    _finish_row(to_f32(total), a, row, channel, stop - first)
                    channel += lanes

    return kernel


def _sum_quarter_bytes(lanes):
    """As `_sum_half_bytes`, of 2-bit codes of a multiple of four channels."""
    quarter = lanes // 4

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge, row_bytes = a[EDGES] - 1, channels // 4
        zero_point = read_i32(a[ZERO_POINT]) + 2
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    column = x + channel // 4
                    sum0, sum1 = splat_i32(0, quarter), splat_i32(0, quarter)
                    sum2, sum3 = splat_i32(0, quarter), splat_i32(0, quarter)
                    edge = first
                    while edge < stop:
                        flush = min(edge + _FLUSH_QUARTER_BYTES, stop)
                        part0, part1 = splat_i8(0, quarter), splat_i8(0, quarter)
                        part2, part3 = splat_i8(0, quarter), splat_i8(0, quarter)
                        while edge < flush:
                            ahead = source_ahead(src, edge, last_edge)
                            prefetch(column + ahead * row_bytes, quarter)
                            packed = load_i8(column + source(src, edge) * row_bytes, quarter)
                            code0, code1, code2, code3 = quarter_bytes(packed)
                            part0, part1 = part0 + code0, part1 + code1
                            part2, part3 = part2 + code2, part3 + code3
                            edge += 1
                        sum0 = sum0 + widen_unsigned_i32(part0)
                        sum1 = sum1 + widen_unsigned_i32(part1)
                        sum2 = sum2 + widen_unsigned_i32(part2)
                        sum3 = sum3 + widen_unsigned_i32(part3)
                    total = interleave(interleave(sum0, sum2), interleave(sum1, sum3))
                    total = total - splat_i32((stop - first) * zero_point, lanes)
                    _finish_row(to_f32(total), a, row, channel, stop - first)
                    channel += lanes

    return kernel


def _sum_weighted(lanes):
    """Sum or mean with a code for each edge."""

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        weight, last_edge = a[WEIGHT], a[EDGES] - 1
        zero_point = splat_i16(read_i32(a[ZERO_POINT]), lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    column = x + channel
                    edge = first
                    part = splat_i32(0, lanes)
                    flush = min(edge + _FLUSH_WEIGHTED, stop)
                    while edge < flush:
                        prefetch(column + source_ahead(src, edge, last_edge) * channels, lanes)
                        codes = load_i8(column + source(src, edge) * channels, lanes)
                        steps = widen_i16(codes) - zero_point
                        part = part + widen_i32(steps * splat_i16(read_i8(weight + edge), lanes))
                        edge += 1
                    y = to_f32(part)
                    if edge < stop:
                        total = widen_i64(part)
                        while edge < stop:
                            flush = min(edge + _FLUSH_WEIGHTED, stop)
                            part = splat_i32(0, lanes)
                            while edge < flush:
                                codes = load_i8(column + source(src, edge) * channels, lanes)
                                steps = widen_i16(codes) - zero_point
                                factor = splat_i16(read_i8(weight + edge), lanes)
                                part = part + widen_i32(steps * factor)
                                edge += 1
                            total = total + widen_i64(part)
                        y = to_f32(total)
                    _finish_row(y, a, row, channel, stop - first)
                    channel += lanes

    return kernel


def _extreme(lanes, greatest):
    """Greatest or least code."""
    start = -128 if greatest else 127

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge = a[EDGES] - 1
        zero_point = splat_i32(read_i32(a[ZERO_POINT]), lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    column = x + channel
                    best = splat_i8(start, lanes)
                    for edge in range(first, stop):
                        prefetch(column + source_ahead(src, edge, last_edge) * channels, lanes)
                        codes = load_i8(column + source(src, edge) * channels, lanes)
                        best = greater(best, codes) if greatest else lesser(best, codes)
                    total = splat_i32(0, lanes)
                    if first < stop:
                        total = widen_i32(best) - zero_point
                    _finish_row(to_f32(total), a, row, channel, stop - first)
                    channel += lanes

    return kernel


def reject_quantized_aggregate(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    weight: Tensor | None = None,
    weight_scale: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> str | None:
    for name, operand in {
        "x": x,
        "weight": weight,
        "row_scale": row_scale,
        "bias": bias,
        "residual": residual,
    }.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    return reject_large(rowptr, src)


def quantized_aggregate(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    weight: Tensor | None = None,
    weight_scale: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    num_rows = rowptr.shape[0] - 1
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((num_rows, channels), dtype)
    if out.numel():
        is_sum = reduce in ("sum", "mean") and weight is None and self_weight is None
        fits = channels % 4 == 0 and channels >= _LEAST_PACKED.get(bits, 0)
        packed_bits = bits if bits < 8 and is_sum and fits else 8
        aggregate_rows(
            x if packed_bits < 8 else unpack_codes(x, channels, bits),
            scale,
            zero_point,
            rowptr,
            src,
            out,
            0,
            weight,
            weight_scale,
            reduce,
            row_scale,
            self_weight,
            bias,
            residual,
            activation,
            out_scale,
            out_zero_point,
            out_bits,
            packed_bits,
        )
    return out if out_scale is None else pack_codes(out, out_bits)


def aggregate_rows(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    out: Tensor,
    first_row: int,
    weight: Tensor | None = None,
    weight_scale: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
    packed_bits: int = 8,
) -> None:
    """Write adjacent rows of the result to `out` [n, C]: floats, or int8 codes of `out_bits`.

    The rows begin at `first_row` of the graph; `rowptr` [n + 1] and what belongs to rows are
    theirs alone, `codes`, `src` and `weight` those of the whole graph.  `packed_bits` below 8 says
    that codes are packed, which goes with a sum or mean of a multiple of four channels.
    """
    num_rows, channels = out.shape
    epilogue = epilogue_arguments(
        num_rows,
        channels,
        out,
        row_scale,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )
    args = [
        *epilogue,
        address(codes),
        address(src),
        address(rowptr),
        src.shape[0],
        address(codes) + first_row * channels,
        address(scale),
        address(zero_point),
        reduce == "mean",
        address(self_weight),
        address(weight),
        address(weight_scale),
    ]
    # A guess for a part of the graph: the pieces themselves are cut by the edges there are.
    edges = src.shape[0] * num_rows // max(num_rows, codes.shape[0])
    operations = (edges + num_rows) * channels >> _OPERATIONS_SHIFT
    kernel = _choose_kernel(channels, reduce, weight is not None, packed_bits)
    launch(kernel, count_pieces(operations, num_rows), args)


def _choose_kernel(channels: int, reduce: str, weighted: bool, packed_bits: int) -> Kernel:
    lanes = choose_lanes(channels)
    if packed_bits < 8:
        return compiled(_sum_half_bytes if packed_bits == 4 else _sum_quarter_bytes, lanes)
    if reduce in ("max", "min"):
        return compiled(_extreme, lanes, reduce == "max")
    if weighted:
        return compiled(_sum_weighted, lanes)
    if lanes < channels and 4 < channels < 128:
        return compiled(_sum_pair, half_lanes(channels))
    return compiled(_sum, lanes)
