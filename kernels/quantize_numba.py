"""CPU code of `gnnfx.kernels.quantize`: passes over memory, one block of channels at a time.

A tensor is seen as rows of equal length.  Without a scale for each row, rows are cut anywhere, and
the last one may be shorter: blocks are then aligned with its end and do some values twice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_floats
from gnnfx.kernels.epilogue_numba import to_codes
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize import code_dtype, code_range, packed_channels, qparams_of_range
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    greater,
    lesser,
    load_f32,
    load_i8,
    pack_fields,
    read_f32,
    read_i8,
    read_i32,
    splat_f32,
    splat_i32,
    store,
    take_piece,
    to_f32,
    unpack_fields,
    where_positive,
    widen_i32,
    write_u8,
)

PIECES, COUNT, LENGTH, ROWS, X, OUT, ROW_SCALE, SCALE, ZERO_POINT, LOW, HIGH, KEPT, Y = range(1, 14)
_MOST_LANES = 64
_FLAT_LENGTH = 4096


def _quantize(lanes, simulate):
    """Codes of floats, or with `simulate` the floats that the codes stand for, but in kept rows."""

    def kernel(a):
        scale, zero_point = read_f32(a[SCALE]), read_i32(a[ZERO_POINT])
        scales, zeros = splat_f32(scale, lanes), splat_i32(zero_point, lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first = a[ROWS] * piece // a[PIECES]
            for row in range(first, a[ROWS] * (piece + 1) // a[PIECES]):
                place = row * a[LENGTH]
                stop = min(place + a[LENGTH], a[COUNT])
                factor = splat_f32(np.float32(1), lanes)
                if a[ROW_SCALE] != 0:
                    factor = splat_f32(read_f32(a[ROW_SCALE] + 4 * row), lanes)
                kept = simulate and a[KEPT] != 0 and read_i8(a[KEPT] + row) != 0
                while place < stop:
                    place = min(place, stop - lanes)
                    x = load_f32(a[X] + 4 * place, lanes)
                    codes = to_codes(x * factor, scale, zero_point, a[LOW], a[HIGH])
                    if kept:
                        store(a[OUT] + 4 * place, x)
                    elif simulate:
                        store(a[OUT] + 4 * place, scales * to_f32(widen_i32(codes) - zeros))
                    else:
                        store(a[OUT] + place, codes)
                    place += lanes

    return kernel


def _clip_gradient(lanes):
    """X is the gradient towards the rounded values Y."""

    def kernel(a):
        scale, zero_point = read_f32(a[SCALE]), read_i32(a[ZERO_POINT])
        half = scale / np.float32(2)
        lows = splat_f32(scale * np.float32(a[LOW] - zero_point) + half, lanes)
        highs = splat_f32(scale * np.float32(a[HIGH] - zero_point) - half, lanes)
        zeros = splat_f32(np.float32(0), lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first = a[ROWS] * piece // a[PIECES]
            for row in range(first, a[ROWS] * (piece + 1) // a[PIECES]):
                place = row * a[LENGTH]
                stop = min(place + a[LENGTH], a[COUNT])
                kept = a[KEPT] != 0 and read_i8(a[KEPT] + row) != 0
                while place < stop:
                    place = min(place, stop - lanes)
                    grad = load_f32(a[X] + 4 * place, lanes)
                    if not kept:
                        y = load_f32(a[Y] + 4 * place, lanes)
                        grad = where_positive(lesser(y - lows, highs - y), grad, zeros)
                    store(a[OUT] + 4 * place, grad)
                    place += lanes

    return kernel


def _dequantize(lanes):
    def kernel(a):
        scale = splat_f32(read_f32(a[SCALE]), lanes)
        zero_point = splat_i32(read_i32(a[ZERO_POINT]), lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            place = a[COUNT] * piece // a[PIECES]
            stop = a[COUNT] * (piece + 1) // a[PIECES]
            while place < stop:
                place = max(min(place, stop - lanes), 0)
                steps = widen_i32(load_i8(a[X] + place, lanes)) - zero_point
                store(a[OUT] + 4 * place, scale * to_f32(steps))
                place += lanes

    return kernel


def _range(lanes):
    """Least and greatest of each lane of a piece, 0 among them: OUT is float32 [pieces, 2, L]."""

    def kernel(a):
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            low, high = splat_f32(np.float32(0), lanes), splat_f32(np.float32(0), lanes)
            first = a[ROWS] * piece // a[PIECES]
            for row in range(first, a[ROWS] * (piece + 1) // a[PIECES]):
                place = row * a[LENGTH]
                stop = min(place + a[LENGTH], a[COUNT])
                factor = splat_f32(np.float32(1), lanes)
                if a[ROW_SCALE] != 0:
                    factor = splat_f32(read_f32(a[ROW_SCALE] + 4 * row), lanes)
                while place < stop:
                    place = min(place, stop - lanes)
                    y = load_f32(a[X] + 4 * place, lanes) * factor
                    low, high = lesser(low, y), greater(high, y)
                    place += lanes
            store(a[OUT] + 8 * lanes * piece, low)
            store(a[OUT] + 8 * lanes * piece + 4 * lanes, high)

    return kernel


def _pack(lanes, bits):
    """Rows of LENGTH int8 codes to bytes; a row's last byte may have empty fields."""
    per_byte = 8 // bits

    def kernel(a):
        length = a[LENGTH]
        whole = length // per_byte * per_byte
        row_bytes = (length + per_byte - 1) // per_byte
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first = a[ROWS] * piece // a[PIECES]
            for row in range(first, a[ROWS] * (piece + 1) // a[PIECES]):
                codes, out = a[X] + row * length, a[OUT] + row * row_bytes
                place = 0
                while place < whole:
                    place = min(place, whole - lanes)
                    store(out + place // per_byte, pack_fields(load_i8(codes + place, lanes), bits))
                    place += lanes
                if whole < length:
                    byte = 0
                    for place in range(whole, length):
                        field = read_i8(codes + place) & (2**bits - 1)
                        byte |= field << (bits * (place - whole))
                    write_u8(out + row_bytes - 1, np.uint8(byte))

    return kernel


def _unpack(lanes, bits):
    """Bytes of rows of LENGTH codes to int8."""
    per_byte = 8 // bits
    packed_lanes = lanes // per_byte

    def kernel(a):
        length = a[LENGTH]
        whole = length // per_byte * per_byte
        row_bytes = (length + per_byte - 1) // per_byte
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first = a[ROWS] * piece // a[PIECES]
            for row in range(first, a[ROWS] * (piece + 1) // a[PIECES]):
                packed, out = a[X] + row * row_bytes, a[OUT] + row * length
                place = 0
                while place < whole:
                    place = min(place, whole - lanes)
                    fields = load_i8(packed + place // per_byte, packed_lanes)
                    store(out + place, unpack_fields(fields, bits))
                    place += lanes
                byte = read_i8(packed + row_bytes - 1)
                for place in range(whole, length):
                    shift = 8 - bits * (place - whole + 1)
                    write_u8(out + place, np.uint8(np.int8(byte << shift) >> (8 - bits)))

    return kernel


def _rows(x: Tensor, *of_rows: Tensor | None) -> tuple[int, int, int]:
    """(values, length of a row, rows) of `x`: its own rows where any operand has one for each."""
    count = x.numel()
    if all(operand is None for operand in of_rows):
        return count, _FLAT_LENGTH, -(-count // _FLAT_LENGTH)
    return count, count // max(x.shape[0], 1), x.shape[0]


def _quantize_rows(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    row_scale: Tensor | None,
    kept: Tensor | None,
    out: Tensor,
    simulate: bool,
) -> Tensor:
    row_scale, kept = _contiguous(row_scale), _contiguous(kept)
    count, length, rows = _rows(x, row_scale, kept)
    if count:
        operands = address(x), address(out), address(row_scale), address(scale), address(zero_point)
        kernel = compiled(_quantize, choose_lanes(min(count, length), _MOST_LANES), simulate)
        args = [count, length, rows, *operands, *code_range(bits), address(kept)]
        launch(kernel, count_pieces(count, rows), args)
    return out


def reject_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> str | None:
    return None if x.is_contiguous() else "x is not contiguous"


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    codes = empty(x.shape, torch.int8)
    _quantize_rows(x, scale, zero_point, bits, row_scale, None, codes, simulate=False)
    return pack_codes(codes, bits)


def reject_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> str | None:
    return reject_quantize(x, scale, zero_point, bits, row_scale)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    out = empty(x.shape)
    return _quantize_rows(x, scale, zero_point, bits, row_scale, kept, out, simulate=True)


def reject_clipped_gradient(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
) -> str | None:
    return reject_floats(grad=grad, y=y)


def clipped_gradient(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
) -> Tensor:
    out, kept = empty(y.shape), _contiguous(kept)
    count, length, rows = _rows(y, kept)
    if count:
        operands = address(grad), address(out), 0, address(scale), address(zero_point)
        args = [count, length, rows, *operands, *code_range(bits), address(kept), address(y)]
        kernel = compiled(_clip_gradient, choose_lanes(min(count, length), _MOST_LANES))
        launch(kernel, count_pieces(count, rows), args)
    return out


def reject_dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> str | None:
    return None if codes.is_contiguous() else "codes are not contiguous"


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Tensor:
    codes = unpack_codes(codes, channels, bits)
    out, count = empty(codes.shape), codes.numel()
    if count:
        operands = address(codes), address(out), 0, address(scale), address(zero_point)
        kernel = compiled(_dequantize, choose_lanes(count, _MOST_LANES))
        launch(kernel, count_pieces(count, count), [count, 0, 0, *operands])
    return out


def reject_choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> str | None:
    return None if x.is_contiguous() else "x is not contiguous"


def choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    count, length, rows = _rows(x, row_scale)
    if not count:
        zero = torch.zeros((), device="cpu")
        return qparams_of_range(zero, zero, bits, symmetric)
    row_scale = _contiguous(row_scale)
    lanes, pieces = choose_lanes(min(count, length), _MOST_LANES), count_pieces(count, rows)
    ranges = empty((pieces, 2, lanes))
    operands = address(x), address(ranges), address(row_scale)
    launch(compiled(_range, lanes), pieces, [count, length, rows, *operands])
    return qparams_of_range(ranges[:, 0].amin(), ranges[:, 1].amax(), bits, symmetric)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """`gnnfx.kernels.quantize.pack` of contiguous codes."""
    if bits == 8:
        return codes
    length = codes.shape[-1]
    out = empty((*codes.shape[:-1], packed_channels(length, bits)), code_dtype(bits))
    _convert_rows(_pack, codes, out, length, bits)
    return out


def unpack_codes(packed: Tensor, channels: int, bits: int) -> Tensor:
    """`gnnfx.kernels.quantize.unpack` of contiguous bytes."""
    if bits == 8:
        return packed
    out = empty((*packed.shape[:-1], channels), torch.int8)
    _convert_rows(_unpack, packed, out, channels, bits)
    return out


def _convert_rows(make, x: Tensor, out: Tensor, length: int, bits: int) -> None:
    if x.numel():
        count = x.numel() // x.shape[-1] * length
        rows = count // length
        lanes = max(choose_lanes(length, _MOST_LANES), 8 // bits)
        args = [count, length, rows, address(x), address(out)]
        launch(compiled(make, lanes, bits), count_pieces(count, rows), args)


def _contiguous(row_scale: Tensor | None) -> Tensor | None:
    return None if row_scale is None else row_scale.contiguous()
