"""Device functions that the Triton kernels share: read, make and store integer codes.

A tile of codes is [R, C]: R rows and C adjacent channels, C a power of two and a multiple of the
codes in a byte.  Codes of 4 and 2 bits are packed along channels, lowest bits first.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Codes must equal the reference's, so no multiply and add may be contracted into one rounding.
EXACT = {"enable_fp_fusion": False}


@triton.jit
def unpack(packed, BITS: tl.constexpr):
    """Signed int8 codes [R, C] of the bytes [R, C * BITS / 8]."""
    if BITS == 8:
        codes = packed
    else:
        signed = packed.to(tl.int8, bitcast=True)
        if BITS == 4:
            codes = tl.interleave((signed << 4) >> 4, signed >> 4)
        else:
            even = tl.interleave((signed << 6) >> 6, (signed << 2) >> 6)
            odd = tl.interleave((signed << 4) >> 6, signed >> 6)
            codes = tl.interleave(even, odd)
    return codes


@triton.jit
def pack(codes, BITS: tl.constexpr):
    """Bytes [R, C * BITS / 8] of int32 codes [R, C]; the inverse of `unpack`."""
    ROWS: tl.constexpr = codes.shape[0]
    COLS: tl.constexpr = codes.shape[1]
    if BITS == 8:
        packed = codes.to(tl.int8)
    elif BITS == 4:
        low, high = tl.split(tl.reshape(codes & 15, (ROWS, COLS // 2, 2)))
        packed = (low | (high << 4)).to(tl.uint8)
    else:
        even, odd = tl.split(tl.reshape(codes & 3, (ROWS, COLS // 4, 2, 2)))
        code0, code2 = tl.split(even)
        code1, code3 = tl.split(odd)
        packed = (code0 | (code1 << 2) | (code2 << 4) | (code3 << 6)).to(tl.uint8)
    return packed


@triton.jit
def round_half_even(x):
    """The integer nearest to x, for abs(x) <= 2**22, as float32: adding 1.5 * 2**23 leaves no
    bits for a fraction, so the addition itself rounds."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def to_codes(y, scale, zero_point, BITS: tl.constexpr):
    """clamp(rint(y * (1 / scale)) + zero_point) as int32; NaN gives the zero point."""
    steps = y * tl.math.div_rn(1.0, scale)
    steps = tl.where(steps == steps, steps, 0.0)
    # Far outside of the range of codes, and far inside of what round_half_even takes.
    steps = tl.minimum(tl.maximum(steps, -1024.0), 1024.0)
    codes = round_half_even(steps).to(tl.int32) + zero_point
    return tl.minimum(tl.maximum(codes, -(1 << (BITS - 1))), (1 << (BITS - 1)) - 1)


@triton.jit
def load_codes(x_ptr, rows, row_mask, first, width, BITS: tl.constexpr, COLS: tl.constexpr):
    """Codes [R, COLS], as int8, of the channels `first`.. of `rows` (int64 [R]); 0 outside.

    `width` is the bytes of a row, an argument of the launch: only of those does the compiler know
    that they are multiples of 16, which it must to load more than a byte at a time.
    """
    PER_BYTE: tl.constexpr = 8 // BITS
    cols = first // PER_BYTE + tl.arange(0, COLS // PER_BYTE)
    mask = row_mask[:, None] & (cols < width)[None, :]
    packed = tl.load(x_ptr + rows[:, None] * width + cols[None, :], mask=mask, other=0)
    return unpack(packed, BITS)


@triton.jit
def load_rows(x_ptr, rows, row_mask, first, channels, COLS: tl.constexpr):
    """Values [R, COLS] of the channels `first`.. of `rows` (int64 [R]); 0 outside."""
    cols = first + tl.arange(0, COLS)
    mask = row_mask[:, None] & (cols < channels)[None, :]
    return tl.load(x_ptr + rows[:, None] * channels + cols[None, :], mask=mask, other=0)


@triton.jit
def load_row_bounds(rowptr_ptr, row):
    """First edge of a row and the one after its last; int64, so that stepping past it is safe."""
    start, end = tl.load(rowptr_ptr + row), tl.load(rowptr_ptr + row + 1)
    return start.to(tl.int64), end.to(tl.int64)


@triton.jit
def add_bias(y, bias_ptr, residual_ptr, rows, row_mask, first, channels, ACTIVATION: tl.constexpr):
    """act(y + bias + residual), each part where it is given; y is f32 [R, C].

    ACTIVATION is the place of the activation in `gnnfx.kernels.epilogue.ACTIVATIONS`.
    """
    COLS: tl.constexpr = y.shape[1]
    if bias_ptr is not None:
        cols = first + tl.arange(0, COLS)
        y += tl.load(bias_ptr + cols, mask=cols < channels, other=0.0)[None, :]
    if residual_ptr is not None:
        y += load_rows(residual_ptr, rows, row_mask, first, channels, COLS)
    # Written so that NaN stays NaN, as in torch.
    if ACTIVATION == 1:
        y = tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION == 2:
        y = tl.where(y < 0.0, tl.exp(tl.minimum(y, 0.0)) - 1.0, y)
    return y


@triton.jit
def store_rows(
    out_ptr,
    y,
    rows,
    row_mask,
    first,
    channels,
    width,
    out_scale_ptr,
    out_zero_point_ptr,
    OUT_BITS: tl.constexpr,
):
    """Store y (f32 [R, C]) as the channels `first`.. of `rows`: as codes if there is a scale.

    Rows have `channels` channels and take up `width` elements.
    """
    COLS: tl.constexpr = y.shape[1]
    cols = first + tl.arange(0, COLS)
    inside = cols < channels
    if out_scale_ptr is None:
        mask = row_mask[:, None] & inside[None, :]
        tl.store(out_ptr + rows[:, None] * width + cols[None, :], y, mask=mask)
    else:
        PER_BYTE: tl.constexpr = 8 // OUT_BITS
        codes = to_codes(y, tl.load(out_scale_ptr), tl.load(out_zero_point_ptr), OUT_BITS)
        # The codes that fill up the last byte are 0, whatever the zero point is.
        codes = tl.where(inside[None, :], codes, 0)
        places = first // PER_BYTE + tl.arange(0, COLS // PER_BYTE)
        mask = row_mask[:, None] & (places < width)[None, :]
        tl.store(out_ptr + rows[:, None] * width + places[None, :], pack(codes, OUT_BITS), mask)


def reject_strided(**tensors: Tensor | None) -> str | None:
    """Why kernels that index memory themselves cannot take one of these tensors, or None."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            return f"{name} is not contiguous"
    return None


def empty_codes(like: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """Memory for packed codes of `shape` beside `like`."""
    dtype = torch.int8 if bits == 8 else torch.uint8
    packed = triton.cdiv(shape[-1] * bits, 8)
    return torch.empty((*shape[:-1], packed), dtype=dtype, device=like.device)


def empty_result(
    like: Tensor, rows: int, channels: int, out_scale: Tensor | None, out_bits: int
) -> Tensor:
    """Memory for what `store_rows` writes: float32 [rows, channels], or its codes."""
    if out_scale is not None:
        return empty_codes(like, (rows, channels), out_bits)
    return torch.empty((rows, channels), dtype=torch.float32, device=like.device)
