"""CPU code of `aggregate_many`: all reductions of a block of channels of a row in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.aggregate_many import LEAST_STD, LEAST_VARIANCE, MANY_REDUCES, names_of
from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_large
from gnnfx.kernels.csr_numba import piece_start, source, source_ahead
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    OUT,
    OUT_HIGH,
    OUT_LOW,
    OUT_SCALE,
    OUT_ZERO_POINT,
    PIECES,
    ROWS,
    epilogue_arguments,
    to_codes,
)
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.memory import empty
from gnnfx.kernels.messages_numba import (
    EDGES,
    FEW_FEATURES,
    LISTED,
    MULTIPLIED,
    NO_EDGES,
    ROWPTR,
    SCALE,
    SRC,
    TEMPERATURE,
    X_DST,
    ZERO_POINT,
    X,
    load_own,
    prefetch_parts,
    sum_parts,
)
from gnnfx.kernels.quantize_numba import pack_codes, unpack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    greater,
    lesser,
    load_f32,
    load_i8,
    prefetch,
    read_f32,
    read_i32,
    root,
    splat_f32,
    splat_f32_like,
    splat_i8,
    splat_i16,
    splat_i32,
    splat_i64,
    store,
    take_piece,
    to_f32,
    widen_i16,
    widen_i32,
    widen_i64,
    zero_up_to,
)

WIDTH = TEMPERATURE + 1
# The most edges whose codes, and squares of codes, fit int16 and int32 sums.
_FLUSH, _FLUSH_SQUARES = 256, 65536
_OPERATIONS_SHIFT = 2


@njit(forceinline=True)
def _put(y, a, row, channel):
    """Store a block of the result as floats or codes."""
    place = row * a[WIDTH] + channel
    if a[OUT_SCALE] == 0:
        store(a[OUT] + 4 * place, y)
    else:
        scale, zero_point = read_f32(a[OUT_SCALE]), read_i32(a[OUT_ZERO_POINT])
        store(a[OUT] + place, to_codes(y, scale, zero_point, a[OUT_LOW], a[OUT_HIGH]))


@njit(forceinline=True)
def _deviation(var):
    """PyG's standard deviation of a variance."""
    std = root(greater(var, splat_f32_like(np.float32(LEAST_VARIANCE), var)))
    return zero_up_to(std, splat_f32_like(np.float32(LEAST_STD), var))


def _many(lanes, coded, edges, sum_at, mean_at, min_at, max_at, var_at, std_at):
    """Reductions in floats; where each stands among the results, -1 if it is not wanted."""
    squares = var_at >= 0 or std_at >= 0
    totals = sum_at >= 0 or mean_at >= 0 or squares
    lows, highs = min_at >= 0, max_at >= 0
    infinity = np.float32(np.inf)
    size = 1 if coded else 4
    row_bytes, edge_bytes = size * lanes, 4 * lanes

    def kernel(a):
        rows, channels, rowptr = a[ROWS], a[CHANNELS], a[ROWPTR]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                degree = splat_f32(np.float32(max(stop - first, 1)), lanes)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    zero = splat_f32(np.float32(0), lanes)
                    total = zero
                    square = splat_f32(np.float32(0), lanes)
                    least = splat_f32(infinity, lanes)
                    most = splat_f32(-infinity, lanes)
                    own = splat_f32(np.float32(0), lanes)
                    # Squares of differences to one of the values lose nothing by cancellation.
                    shift = splat_f32(np.float32(0), lanes)
                    if first < stop:
                        if squares:
                            shift = sum_parts(a, first, channel, channels, zero, coded, True, edges)
                        own = load_own(a, row, channel, channels, zero)
                    else:
                        least, most = total, total
                    for edge in range(first, stop):
                        prefetch_parts(
                            a, edge, channel, False, True, edges, size, row_bytes, edge_bytes
                        )
                        value = sum_parts(a, edge, channel, channels, zero, coded, True, edges)
                        if totals:
                            total = total + value
                        if squares:
                            away = value - shift
                            square = square + away * away
                        if lows:
                            least = lesser(least, value)
                        if highs:
                            most = greater(most, value)
                    if sum_at >= 0:
                        count = splat_f32(np.float32(stop - first), lanes)
                        _put(total + own * count, a, row, sum_at * channels + channel)
                    mean = total / degree
                    if mean_at >= 0:
                        _put(mean + own, a, row, mean_at * channels + channel)
                    if lows:
                        _put(least + own, a, row, min_at * channels + channel)
                    if highs:
                        _put(most + own, a, row, max_at * channels + channel)
                    if squares:
                        away = mean - shift
                        var = square / degree - away * away
                        var = greater(var, splat_f32(np.float32(0), lanes))
                        if var_at >= 0:
                            _put(var, a, row, var_at * channels + channel)
                        if std_at >= 0:
                            _put(_deviation(var), a, row, std_at * channels + channel)
                    channel += lanes

    return kernel


def _many_codes(lanes, sum_at, mean_at, min_at, max_at, var_at, std_at):
    """Reductions of codes, exact in integers."""
    squares = var_at >= 0 or std_at >= 0
    totals = sum_at >= 0 or mean_at >= 0 or squares
    lows, highs = min_at >= 0, max_at >= 0

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge = a[EDGES] - 1
        zero_point, scale = read_i32(a[ZERO_POINT]), read_f32(a[SCALE])
        step = splat_f32(scale, lanes)
        zeros = splat_i32(zero_point, lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                count = max(stop - first, 1)
                degree = splat_f32(np.float32(count), lanes)
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    column = x + channel
                    total, square = splat_i64(0, lanes), splat_i64(0, lanes)
                    least, most = splat_i8(127, lanes), splat_i8(-128, lanes)
                    edge = first
                    while edge < stop:
                        end = min(edge + _FLUSH_SQUARES, stop)
                        part = splat_i32(0, lanes)
                        part_square = splat_i32(0, lanes)
                        while edge < end:
                            flush = min(edge + _FLUSH, end)
                            short = splat_i16(0, lanes)
                            while edge < flush:
                                ahead = source_ahead(src, edge, last_edge)
                                prefetch(column + ahead * channels, lanes)
                                codes = load_i8(column + source(src, edge) * channels, lanes)
                                if totals:
                                    wide = widen_i16(codes)
                                    short = short + wide
                                    if squares:
                                        part_square = part_square + widen_i32(wide * wide)
                                if lows:
                                    least = lesser(least, codes)
                                if highs:
                                    most = greater(most, codes)
                                edge += 1
                            part = part + widen_i32(short)
                        total = total + widen_i64(part)
                        square = square + widen_i64(part_square)
                    own = splat_f32(np.float32(0), lanes)
                    if a[X_DST] != 0 and first < stop:
                        own = load_f32(a[X_DST] + 4 * (row * channels + channel), lanes)
                    # Neither the zero point nor the row's own term changes the spread.
                    moved = total - splat_i64((stop - first) * zero_point, lanes)
                    if sum_at >= 0:
                        edges = splat_f32(np.float32(stop - first), lanes)
                        y = to_f32(moved) * step + own * edges
                        _put(y, a, row, sum_at * channels + channel)
                    if mean_at >= 0:
                        y = to_f32(moved) / degree * step + own
                        _put(y, a, row, mean_at * channels + channel)
                    if lows:
                        low = splat_i32(0, lanes)
                        if first < stop:
                            low = widen_i32(least) - zeros
                        _put(to_f32(low) * step + own, a, row, min_at * channels + channel)
                    if highs:
                        high = splat_i32(0, lanes)
                        if first < stop:
                            high = widen_i32(most) - zeros
                        _put(to_f32(high) * step + own, a, row, max_at * channels + channel)
                    if squares:
                        spread = splat_i64(count, lanes) * square - total * total
                        pairs = splat_f32(np.float32(count * count), lanes)
                        var = to_f32(spread) / pairs * splat_f32(scale * scale, lanes)
                        if var_at >= 0:
                            _put(var, a, row, var_at * channels + channel)
                        if std_at >= 0:
                            _put(_deviation(var), a, row, std_at * channels + channel)
                    channel += lanes

    return kernel


def reject_aggregate_many(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
) -> str | None:
    return _reject(rowptr, src, x=x, x_dst=x_dst, perm=perm, edge=edge)


def _reject(rowptr: Tensor, src: Tensor, **operands: Tensor | None) -> str | None:
    for name, operand in operands.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    return reject_large(rowptr, src)


def aggregate_many(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
) -> Tensor:
    shape = (rowptr.shape[0] - 1, len(names_of(reduces)) * x.shape[1])
    out = empty(shape)
    parts = _Parts(x, rowptr, src, x_dst, perm, edge, edge_weight, edge_bias)
    _launch(out, parts, x.shape[1], reduces)
    return out


def reject_quantized_aggregate_many(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> str | None:
    return _reject(rowptr, src, x=x, x_dst=x_dst, perm=perm, edge=edge)


def quantized_aggregate_many(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    shape = (rowptr.shape[0] - 1, len(names_of(reduces)) * channels)
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty(shape, dtype)
    codes = unpack_codes(x, channels, bits)
    parts = _Parts(codes, rowptr, src, x_dst, perm, edge, edge_weight, edge_bias, scale, zero_point)
    _launch(out, parts, channels, reduces, (out_scale, out_zero_point, out_bits))
    return out if out_scale is None else pack_codes(out, out_bits)


class _Parts(NamedTuple):
    """What messages are sums of, with the scale of `x` if it holds codes."""

    x: Tensor
    rowptr: Tensor
    src: Tensor
    x_dst: Tensor | None
    perm: Tensor | None
    edge: Tensor | None
    edge_weight: Tensor | None
    edge_bias: Tensor | None
    scale: Tensor | None = None
    zero_point: Tensor | None = None


def _launch(
    out: Tensor, parts: _Parts, channels: int, reduces: str, qparams=(None, None, 8)
) -> None:
    """Fill `out` [N, R * C] with the reductions; codes without features of edges in integers."""
    if out.numel() == 0:
        return
    x, rowptr, src, x_dst, perm, edge, weight, bias, scale, zero_point = parts
    num_rows, num_edges, names = rowptr.shape[0] - 1, src.shape[0], names_of(reduces)
    if edge is not None and weight is not None and weight.shape[1] > FEW_FEATURES:
        edge, weight, bias = LINEAR.run(edge, weight, bias), None, None
    edges = NO_EDGES if edge is None else LISTED if weight is None else MULTIPLIED
    by_feature = None if weight is None else weight.t().contiguous()
    features = 0 if weight is None else weight.shape[1]
    args = [
        *epilogue_arguments(num_rows, channels, out, None, None, None, "none", *qparams),
        *(address(x), address(src), address(rowptr), num_edges, address(x_dst), address(edge)),
        *(address(perm), address(scale), address(zero_point), 0, num_edges, 0, 0, 0),
        *(address(by_feature), address(bias), features, 0, out.shape[1]),
    ]
    at = [names.index(name) if name in names else -1 for name in MANY_REDUCES]
    lanes, shift = choose_lanes(channels, 64), 0
    if scale is not None and edge is None:
        kernel, shift = compiled(_many_codes, lanes, *at), _OPERATIONS_SHIFT
    else:
        kernel = compiled(_many, lanes, scale is not None, edges, *at)
    operations = (num_edges + num_rows) * channels * len(names) >> shift
    launch(kernel, count_pieces(operations, num_rows), args)
