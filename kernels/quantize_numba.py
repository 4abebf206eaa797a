"""CPU code of `gnnfx.kernels.quantize`: passes over memory, one block of values at a time.

Blocks begin at multiples of their width, where cache lines do, and hold values of two rows at
most; the last one is aligned with the end of the tensor and does some values twice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_floats
from gnnfx.kernels.epilogue_numba import to_codes
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize import (
    GREATEST_SCALE,
    SMALLEST_SCALE,
    code_dtype,
    code_range,
    packed_channels,
)
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    PAGE,
    greater,
    lesser,
    load_f32,
    load_i8,
    merge_lanes,
    pack_fields,
    prefetch,
    read_f32,
    read_i8,
    read_i32,
    splat_f32,
    splat_f32_like,
    splat_i32,
    store,
    stream,
    take_piece,
    to_f32,
    unpack_fields,
    where_positive,
    widen_i32,
    write_u8,
)

(
    PIECES,
    BLOCKS,
    COUNT,
    LENGTH,
    ROWS,
    X,
    OUT,
    ROW_SCALE,
    SCALE,
    ZERO_POINT,
    LOW,
    HIGH,
    KEPT,
    Y,
) = range(1, 15)
_MOST_LANES = 64
_STREAMED = 2**22  # values: more than the caches hold on to until the result is read


@njit(forceinline=True)
def _row_of(a, place, row):
    """The row of the value at `place`, often `row` or the next, and how many of it are left."""
    left = (row + 1) * a[LENGTH] - place
    if left <= 0:
        row += 1
        left += a[LENGTH]
    if left <= 0 or left > a[LENGTH]:
        row = place // a[LENGTH]
        left = (row + 1) * a[LENGTH] - place
    return row, left


@njit(forceinline=True)
def _of_rows(first, second, left, lanes, like):
    """A vector with `first` for the `left` values that a row still has, then `second`."""
    values = splat_f32_like(first, like)
    if left < lanes:
        values = merge_lanes(values, splat_f32_like(second, like), left)
    return values


@njit(forceinline=True)
def _scaled(x, a, row, left, lanes):
    """A block of values as their rows are scaled; `left` are of `row`, the others of the next."""
    factors = a[ROW_SCALE]
    second = read_f32(factors + 4 * min(row + 1, a[ROWS] - 1))
    return x * _of_rows(read_f32(factors + 4 * row), second, left, lanes, x)


@njit(forceinline=True)
def _unless_kept(others, kept, a, row, left, lanes):
    """Such a block of `others`, with the values of `kept` in the rows that are."""
    second = np.float32(read_i8(a[KEPT] + min(row + 1, a[ROWS] - 1)))
    is_kept = _of_rows(np.float32(read_i8(a[KEPT] + row)), second, left, lanes, kept)
    return where_positive(is_kept, kept, others)


def _quantize(lanes, simulate, scaled, keeps, each, streams):
    """Codes of floats, or with `simulate` the floats that the codes stand for, but in kept rows.

    each: whether every value is a row.
    streams: whether these go past the caches, which would first read what is overwritten.
    """
    block_bytes = 4 * lanes

    def kernel(a):
        scale, zero_point = read_f32(a[SCALE]), read_i32(a[ZERO_POINT])
        scales, zeros = splat_f32(scale, lanes), splat_i32(zero_point, lanes)
        row = 0
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first, last = a[BLOCKS] * piece // a[PIECES], a[BLOCKS] * (piece + 1) // a[PIECES]
            for block in range(first, last):
                place = min(block * lanes, a[COUNT] - lanes)
                row, left = _row_of(a, place, row)
                prefetch(a[X] + 4 * place + PAGE, block_bytes)
                x = load_f32(a[X] + 4 * place, lanes)
                if scaled:
                    x = _scaled(x, a, row, left, lanes)
                codes = to_codes(x, scale, zero_point, a[LOW], a[HIGH])
                if simulate:
                    y = scales * to_f32(widen_i32(codes) - zeros)
                    if keeps and each:
                        kept = to_f32(widen_i32(load_i8(a[KEPT] + place, lanes)))
                        y = where_positive(kept, x, y)
                    elif keeps:
                        y = _unless_kept(y, x, a, row, left, lanes)
                    if streams and place == block * lanes:
                        stream(a[OUT] + 4 * place, y)
                    else:
                        store(a[OUT] + 4 * place, y)
                else:
                    store(a[OUT] + place, codes)

    return kernel


def _clip_gradient(lanes, scaled, keeps):
    """X is the gradient towards the rounded values Y."""

    def kernel(a):
        scale, zero_point = read_f32(a[SCALE]), read_i32(a[ZERO_POINT])
        half = scale / np.float32(2)
        low = scale * np.float32(a[LOW] - zero_point) + half
        high = scale * np.float32(a[HIGH] - zero_point) - half
        # An end that stands for zero clips nothing.
        lows = splat_f32(min(low, -half), lanes)
        highs = splat_f32(max(high, half), lanes)
        zeros = splat_f32(np.float32(0), lanes)
        row = 0
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first, last = a[BLOCKS] * piece // a[PIECES], a[BLOCKS] * (piece + 1) // a[PIECES]
            for block in range(first, last):
                place = min(block * lanes, a[COUNT] - lanes)
                row, left = _row_of(a, place, row)
                y, grad = load_f32(a[Y] + 4 * place, lanes), load_f32(a[X] + 4 * place, lanes)
                if scaled:
                    grad = _scaled(grad, a, row, left, lanes)
                passed = where_positive(lesser(y - lows, highs - y), grad, zeros)
                if keeps:
                    passed = _unless_kept(passed, grad, a, row, left, lanes)
                store(a[OUT] + 4 * place, passed)

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


def _range(lanes, scaled):
    """Least and greatest of each lane of a piece, 0 among them: OUT is float32 [pieces, 2, L]."""

    def kernel(a):
        row = 0
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            low, high = splat_f32(np.float32(0), lanes), splat_f32(np.float32(0), lanes)
            first, last = a[BLOCKS] * piece // a[PIECES], a[BLOCKS] * (piece + 1) // a[PIECES]
            for block in range(first, last):
                place = min(block * lanes, a[COUNT] - lanes)
                row, left = _row_of(a, place, row)
                y = load_f32(a[X] + 4 * place, lanes)
                if scaled:
                    y = _scaled(y, a, row, left, lanes)
                low, high = lesser(low, y), greater(high, y)
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


class _Blocks(NamedTuple):
    """How a tensor is cut: `lanes` values a block, rows of `length`, which are no shorter."""

    lanes: int
    blocks: int
    values: int
    length: int
    rows: int

    @property
    def pieces(self) -> int:
        return count_pieces(self.values, self.blocks)


def _cut(x: Tensor, *of_rows: Tensor | None) -> _Blocks:
    """Blocks of `x` with values; rows are its own where any operand has one for each."""
    count = x.numel()
    rows = 1 if all(operand is None for operand in of_rows) else x.shape[0]
    lanes = choose_lanes(count // rows, _MOST_LANES)
    return _Blocks(lanes, -(-count // lanes), count, count // rows, rows)


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
    if x.numel():
        each = row_scale is None and kept is not None and kept.numel() == x.numel()
        cut = _cut(x, row_scale, None if each else kept)
        operands = address(x), address(out), address(row_scale), address(scale), address(zero_point)
        args = [*cut[1:], *operands, *code_range(bits), address(kept)]
        streams = simulate and x.numel() >= _STREAMED and address(out) % 64 == 0
        given = row_scale is not None, kept is not None, each
        kernel = compiled(_quantize, cut.lanes, simulate, *given, streams and 4 * cut.lanes >= 64)
        launch(kernel, cut.pieces, args)
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
    row_scale: Tensor | None = None,
) -> str | None:
    return reject_floats(grad=grad, y=y)


def clipped_gradient(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    out, row_scale, kept = empty(y.shape), _contiguous(row_scale), _contiguous(kept)
    if y.numel():
        cut = _cut(y, row_scale, kept)
        own = address(row_scale), address(scale), address(zero_point)
        operands = address(grad), address(out), *own, *code_range(bits), address(kept), address(y)
        kernel = compiled(_clip_gradient, cut.lanes, row_scale is not None, kept is not None)
        launch(kernel, cut.pieces, [*cut[1:], *operands])
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
        launch(kernel, count_pieces(count, count), [0, count, 0, 0, *operands])
    return out


def reject_choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> str | None:
    return None if x.is_contiguous() else "x is not contiguous"


def choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    low = high = np.float32(0)
    if x.numel():
        row_scale, cut = _contiguous(row_scale), _cut(x, row_scale)
        ranges = empty((cut.pieces, 2, cut.lanes))
        operands = address(x), address(ranges), address(row_scale)
        kernel = compiled(_range, cut.lanes, row_scale is not None)
        launch(kernel, cut.pieces, [*cut[1:], *operands])
        found = ranges.numpy()
        low, high = found[:, 0].min(), found[:, 1].max()
    with np.errstate(over="ignore", invalid="ignore"):
        scale, zero_point = _qparams_of_range(low, high, bits, symmetric)
    return (
        torch.full((), scale, dtype=torch.float32, device="cpu"),
        torch.full((), zero_point, dtype=torch.int32, device="cpu"),
    )


def _qparams_of_range(low, high, bits, symmetric):
    """`qparams_of_range` of float32 scalars: ops of torch would take longer than the values did."""
    qmin, qmax = code_range(bits)
    width = max(high, -low) if symmetric else high - low
    if not width > 0:
        return 1.0, 0
    steps = np.float32(qmax if symmetric else qmax - qmin)
    scale = min(max(width / steps, np.float32(SMALLEST_SCALE)), np.float32(GREATEST_SCALE))
    return scale, 0 if symmetric else int(min(max(np.rint(qmin - low / scale), qmin), qmax))


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
        args = [0, count, length, rows, address(x), address(out)]
        launch(compiled(make, lanes, bits), count_pieces(count, rows), args)


def _contiguous(row_scale: Tensor | None) -> Tensor | None:
    return None if row_scale is None else row_scale.contiguous()
