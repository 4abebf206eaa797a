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

from gnnfx.kernels.compile_numba import choose_lanes, compiled
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
from gnnfx.kernels.quantize_numba import pack_codes, unpack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    greater,
    lesser,
    load_i8,
    prefetch,
    read_f32,
    read_i8,
    read_i32,
    splat_f32_like,
    splat_i8,
    splat_i16,
    splat_i32,
    take_piece,
    to_f32,
    widen_i16,
    widen_i32,
)

X, SRC, ROWPTR, EDGES, SELF_X, SCALE, ZERO_POINT, MEAN, SELF_WEIGHT, WEIGHT, WEIGHT_SCALE = range(
    FIRST_FREE, FIRST_FREE + 11
)
# -128 * 256 and (127 + 128) * 127 * 65536 are the greatest sums that fit int16 and int32.
_FLUSH = 256
_FLUSH_WEIGHTED = 65536


@njit(forceinline=True)
def _finish_row(total, a, row, channel, degree):
    """Scale the exact result of a row (float lanes), add the row itself, and finish."""
    multiplier = read_f32(a[SCALE])
    if a[WEIGHT_SCALE] != 0:
        multiplier = multiplier * read_f32(a[WEIGHT_SCALE])
    if a[ROW_SCALE] != 0:
        multiplier = multiplier * read_f32(a[ROW_SCALE] + 4 * row)
    y = total
    if a[MEAN] != 0:
        y = y / splat_f32_like(np.float32(max(degree, 1)), y)
    y = y * splat_f32_like(multiplier, y)
    return y


def sum_codes(lanes):
    """Unweighted sum or mean of int8 codes."""

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
                    y = _finish_row(to_f32(total), a, row, channel, stop - first)
                    if a[SELF_WEIGHT] != 0:
                        steps = widen_i32(load_i8(a[SELF_X] + row * channels + channel, lanes))
                        steps = steps - splat_i32(zero_point, lanes)
                        own = splat_f32_like(read_f32(a[SCALE]), y) * to_f32(steps)
                        y = y + splat_f32_like(read_f32(a[SELF_WEIGHT]), y) * own
                    finish(y, a, row, channel)
                    channel += lanes

    return kernel
