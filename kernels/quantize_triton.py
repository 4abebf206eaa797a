"""Triton code of `gnnfx.kernels.quantize`: elementwise over rows, and a range in two steps."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.codes_triton import (
    EXACT,
    empty_codes,
    load_codes,
    load_rows,
    reject_strided,
    round_half_even,
    store_rows,
    to_codes,
)

_TILE = 1024  # values a program of an elementwise kernel handles
_RANGE_BLOCK = 2048
_RANGE_PROGRAMS = 1024


@triton.jit
def _quantize(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    row_scale_ptr,
    kept_ptr,
    out_ptr,
    num_rows,
    channels,
    width,
    rows_per_scale,
    BITS: tl.constexpr,
    SIMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Codes of x (f32 [R, C]), packed, or with SIMULATE the float32 values they stand for.

    With SIMULATE, rows that are kept (u8, one for each that has a scale) are not rounded.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < num_rows
    first = tl.program_id(1) * COLS
    y = load_rows(x_ptr, rows, row_mask, first, channels, COLS)  # [ROWS, COLS]
    if row_scale_ptr is not None:
        y *= tl.load(row_scale_ptr + rows // rows_per_scale, mask=row_mask, other=0.0)[:, None]
    if SIMULATE:
        scale, zero_point = tl.load(scale_ptr), tl.load(zero_point_ptr)
        rounded = (to_codes(y, scale, zero_point, BITS) - zero_point).to(tl.float32) * scale
        if kept_ptr is not None:
            kept = tl.load(kept_ptr + rows // rows_per_scale, mask=row_mask, other=0)
            rounded = tl.where(kept[:, None] != 0, y, rounded)
        y = rounded
        store_rows(out_ptr, y, rows, row_mask, first, channels, width, None, None, BITS)
    else:
        store_rows(
            out_ptr, y, rows, row_mask, first, channels, width, scale_ptr, zero_point_ptr, BITS
        )


@triton.jit
def _clipped_gradient(
    grad_ptr,
    y_ptr,
    scale_ptr,
    zero_point_ptr,
    kept_ptr,
    row_scale_ptr,
    out_ptr,
    num_rows,
    channels,
    rows_per_scale,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The scaled gradient [R, C] where y is 0, between the end codes, or kept (u8 a row)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < num_rows
    first = tl.program_id(1) * COLS
    scale, zero_point = tl.load(scale_ptr), tl.load(zero_point_ptr)
    low = scale * (-(1 << (BITS - 1)) - zero_point).to(tl.float32) + scale * 0.5
    high = scale * ((1 << (BITS - 1)) - 1 - zero_point).to(tl.float32) - scale * 0.5
    y = load_rows(y_ptr, rows, row_mask, first, channels, COLS)
    passes = ((y > low) & (y < high)) | (y == 0)
    if kept_ptr is not None:
        kept = tl.load(kept_ptr + rows // rows_per_scale, mask=row_mask, other=0)
        passes = passes | (kept[:, None] != 0)
    grad = load_rows(grad_ptr, rows, row_mask, first, channels, COLS)
    if row_scale_ptr is not None:
        grad *= tl.load(row_scale_ptr + rows // rows_per_scale, mask=row_mask, other=0.0)[:, None]
    grad = tl.where(passes, grad, 0.0)
    store_rows(out_ptr, grad, rows, row_mask, first, channels, channels, None, None, BITS)


@triton.jit
def _dequantize(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    out_ptr,
    num_rows,
    channels,
    width,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """scale * (x - zero_point) as f32 [R, C] of packed codes x."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < num_rows
    first = tl.program_id(1) * COLS
    codes = load_codes(x_ptr, rows, row_mask, first, width, BITS, COLS).to(tl.int32)
    y = (codes - tl.load(zero_point_ptr)).to(tl.float32) * tl.load(scale_ptr)
    store_rows(out_ptr, y, rows, row_mask, first, channels, channels, None, None, BITS)


@triton.jit
def _range(x_ptr, row_scale_ptr, range_ptr, count, row_length, BLOCK: tl.constexpr):
    """min(x, 0) and max(x, 0) of every P-th block of x (f32 [count]) into range (f32 [2, P])."""
    part, parts = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    low = tl.zeros((BLOCK,), dtype=tl.float32)
    high = tl.zeros((BLOCK,), dtype=tl.float32)
    invalid = tl.zeros((BLOCK,), dtype=tl.int32)
    for block in range(part, tl.cdiv(count, BLOCK), parts):
        places = block * BLOCK + tl.arange(0, BLOCK)
        inside = places < count
        y = tl.load(x_ptr + places, mask=inside, other=0.0)
        if row_scale_ptr is not None:
            y *= tl.load(row_scale_ptr + places // row_length, mask=inside, other=0.0)
        low, high = tl.minimum(low, y), tl.maximum(high, y)
        invalid |= (y != y).to(tl.int32)
    # Like torch.amin and amax, a NaN anywhere makes the whole range NaN.
    spoiled = tl.max(invalid, 0) > 0
    tl.store(range_ptr + part, tl.where(spoiled, float("nan"), tl.min(low, 0)))
    tl.store(range_ptr + parts + part, tl.where(spoiled, float("nan"), tl.max(high, 0)))


@triton.jit
def _qparams(
    range_ptr,
    scale_ptr,
    zero_point_ptr,
    parts,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale and zero point of the union of the ranges (f32 [2, P])."""
    QMIN: tl.constexpr = -(1 << (BITS - 1))
    QMAX: tl.constexpr = (1 << (BITS - 1)) - 1
    STEPS: tl.constexpr = QMAX if SYMMETRIC else QMAX - QMIN
    place = tl.arange(0, BLOCK)
    lows = tl.load(range_ptr + place, mask=place < parts, other=0.0)
    highs = tl.load(range_ptr + parts + place, mask=place < parts, other=0.0)
    invalid = tl.max((lows != lows).to(tl.int32), 0)
    low = tl.min(tl.where(lows == lows, lows, 0.0), 0)
    high = tl.max(tl.where(highs == highs, highs, 0.0), 0)
    width = tl.maximum(high, -low) if SYMMETRIC else high - low
    usable = (invalid == 0) & (width > 0.0)
    scale = tl.math.div_rn(width, STEPS * 1.0)
    scale = tl.where(usable, tl.minimum(tl.maximum(scale, 2.0**-126), 2.0**126), 1.0)
    tl.store(scale_ptr, scale)
    if SYMMETRIC:
        tl.store(zero_point_ptr, 0)
    else:
        # Clamped first: the bounds are integers, and an infinite `low` must not be rounded.
        zero_point = tl.minimum(tl.maximum(QMIN - tl.math.div_rn(low, scale), QMIN), QMAX)
        zero_point = round_half_even(zero_point).to(tl.int32)
        tl.store(zero_point_ptr, tl.where(usable, zero_point, 0))


def reject_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> str | None:
    if x.dim() == 1 and row_scale is not None:
        return "a vector has no rows to scale"
    return reject_strided(x=x, row_scale=row_scale)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, row_scale: Tensor | None = None
) -> Tensor:
    out = empty_codes(x, tuple(x.shape), bits)
    _launch_quantize(x, scale, zero_point, bits, row_scale, None, out, simulate=False)
    return out


def reject_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> str | None:
    if x.dim() == 1 and kept is not None:
        return "a vector has no rows to keep"
    strided = reject_strided(kept=kept)
    return strided or reject_quantize(x, scale, zero_point, bits, row_scale)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    row_scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    out = torch.empty(tuple(x.shape), dtype=torch.float32, device=x.device)
    _launch_quantize(x, scale, zero_point, bits, row_scale, kept, out, simulate=True)
    return out


def _launch_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    row_scale: Tensor | None,
    kept: Tensor | None,
    out: Tensor,
    *,
    simulate: bool,
) -> None:
    rows, channels = _rows(x), x.shape[-1]
    grid, blocks = _tiles(rows, channels)
    _quantize[grid](
        x,
        scale,
        zero_point,
        row_scale,
        _bytes(kept),
        out,
        rows,
        channels,
        out.shape[-1],
        _rows_each(x),
        BITS=bits,
        SIMULATE=simulate,
        **blocks,
        **EXACT,
    )


def reject_clipped_gradient(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> str | None:
    return reject_strided(grad=grad) or reject_fake_quantize(
        y, scale, zero_point, bits, row_scale, kept
    )


def clipped_gradient(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    out = torch.empty_like(grad)
    rows, channels = _rows(y), y.shape[-1]
    grid, blocks = _tiles(rows, channels)
    _clipped_gradient[grid](
        grad,
        y,
        scale,
        zero_point,
        _bytes(kept),
        row_scale,
        out,
        rows,
        channels,
        _rows_each(y),
        BITS=bits,
        **blocks,
        **EXACT,
    )
    return out


def reject_dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> str | None:
    return reject_strided(codes=codes)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, channels: int, bits: int = 8
) -> Tensor:
    out = torch.empty((*codes.shape[:-1], channels), dtype=torch.float32, device=codes.device)
    rows = _rows(codes)
    grid, blocks = _tiles(rows, channels)
    _dequantize[grid](
        codes,
        scale,
        zero_point,
        out,
        rows,
        channels,
        codes.shape[-1],
        BITS=bits,
        **blocks,
        **EXACT,
    )
    return out


def _rows(x: Tensor) -> int:
    """Rows of the last dimension; a vector is one row."""
    return x[..., 0].numel() if x.shape[-1] else 0


def _rows_each(x: Tensor) -> int:
    """Rows of the last dimension that one entry of the first has."""
    return _rows(x) // max(x.shape[0], 1) if x.dim() > 1 else 1


def _bytes(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept.view(torch.uint8)


def _tiles(rows: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of an elementwise kernel, and the size of what one program handles."""
    cols = min(128, max(4, triton.next_power_of_2(channels)))
    blocks = {"ROWS": _TILE // cols, "COLS": cols}
    return (triton.cdiv(rows, blocks["ROWS"]), triton.cdiv(channels, cols)), blocks


def reject_choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> str | None:
    return reject_strided(x=x, row_scale=row_scale)


def choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, row_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    scale = torch.empty((), dtype=torch.float32, device=x.device)
    zero_point = torch.empty((), dtype=torch.int32, device=x.device)
    count = x.numel()
    parts = max(1, min(_RANGE_PROGRAMS, triton.cdiv(count, _RANGE_BLOCK)))
    ranges = torch.empty((2, parts), dtype=torch.float32, device=x.device)
    row_length = count // max(x.shape[0], 1)
    _range[(parts,)](x, row_scale, ranges, count, row_length, BLOCK=_RANGE_BLOCK, **EXACT)
    _qparams[(1,)](
        ranges,
        scale,
        zero_point,
        parts,
        BITS=bits,
        SYMMETRIC=symmetric,
        BLOCK=triton.next_power_of_2(parts),
        **EXACT,
    )
    return scale, zero_point
