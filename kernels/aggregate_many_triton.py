"""Triton code of `gnnfx.kernels.aggregate_many`: one sweep over the edges for all reductions.

A kernel takes the place of each reduction in the result, or -1 for one that is not wanted.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.aggregate_many import LEAST_STD, LEAST_VARIANCE, MANY_REDUCES, names_of
from gnnfx.kernels.aggregate_messages_triton import load_sum
from gnnfx.kernels.codes_triton import (
    EXACT,
    load_codes,
    load_row_bounds,
    load_rows,
    reject_strided,
    to_codes,
)
from gnnfx.kernels.quantize import pack
from gnnfx.kernels.reduce_triton import end_reduction, reduce_edges, start_reduction, tile

_LEAST_VARIANCE = tl.constexpr(LEAST_VARIANCE)
_LEAST_STD = tl.constexpr(LEAST_STD)
# Edges whose squares of steps, at most 255 * 255 each, fit an int32 sum together.
_CHUNK = tl.constexpr(16384)


@triton.jit
def _put(
    places,
    y,
    mask,
    channels,
    out_scale_ptr,
    out_zero_point_ptr,
    PLACE: tl.constexpr,
    OUT_BITS: tl.constexpr,
):
    """Store a reduction (f32 [1, C]) if it is wanted: as codes, one a byte, if there is a scale."""
    if PLACE >= 0:
        if out_scale_ptr is not None:
            scale, zero_point = tl.load(out_scale_ptr), tl.load(out_zero_point_ptr)
            y = to_codes(y, scale, zero_point, OUT_BITS).to(tl.int8)
        tl.store(places + PLACE * channels, y, mask=mask)


@triton.jit
def _store_all(
    total,
    mean,
    least,
    most,
    var,
    degree,
    row,
    first,
    channels,
    x_dst_ptr,
    out_ptr,
    out_scale_ptr,
    out_zero_point_ptr,
    SUM: tl.constexpr,
    MEAN: tl.constexpr,
    MIN: tl.constexpr,
    MAX: tl.constexpr,
    VAR: tl.constexpr,
    STD: tl.constexpr,
    COUNT: tl.constexpr,
    OUT_BITS: tl.constexpr,
):
    """Store the wanted ones of the reductions (f32 [1, C]) of a row's `degree` edges."""
    COLS: tl.constexpr = total.shape[1]
    cols = first + tl.arange(0, COLS)[None, :]
    mask = cols < channels
    places = out_ptr + row * COUNT * channels + cols
    if x_dst_ptr is not None:
        # Added to every message of the row, so it moves out of the reductions.
        rows = row + tl.zeros((1,), dtype=tl.int64)
        own = load_rows(x_dst_ptr, rows, rows >= 0, first, channels, COLS)
        own = tl.where(degree > 0, own, 0.0)
        total += own * degree.to(tl.float32)
        mean += own
        least += own
        most += own
    std = tl.sqrt_rn(tl.where(var < _LEAST_VARIANCE, _LEAST_VARIANCE, var))
    std = tl.where(std <= _LEAST_STD, 0.0, std)
    _put(places, total, mask, channels, out_scale_ptr, out_zero_point_ptr, SUM, OUT_BITS)
    _put(places, mean, mask, channels, out_scale_ptr, out_zero_point_ptr, MEAN, OUT_BITS)
    _put(places, least, mask, channels, out_scale_ptr, out_zero_point_ptr, MIN, OUT_BITS)
    _put(places, most, mask, channels, out_scale_ptr, out_zero_point_ptr, MAX, OUT_BITS)
    _put(places, var, mask, channels, out_scale_ptr, out_zero_point_ptr, VAR, OUT_BITS)
    _put(places, std, mask, channels, out_scale_ptr, out_zero_point_ptr, STD, OUT_BITS)


@triton.jit
def _aggregate_many(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    rowptr_ptr,
    src_ptr,
    x_dst_ptr,
    perm_ptr,
    edge_ptr,
    edge_weight_ptr,
    edge_bias_ptr,
    out_scale_ptr,
    out_zero_point_ptr,
    out_ptr,
    channels,
    x_width,
    features,
    BITS: tl.constexpr,
    OUT_BITS: tl.constexpr,
    SUM: tl.constexpr,
    MEAN: tl.constexpr,
    MIN: tl.constexpr,
    MAX: tl.constexpr,
    VAR: tl.constexpr,
    STD: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y [N, COUNT * C] from x [S, C], floats or codes, x_dst (f32 [N, C]) and features of edges."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    start, end = load_row_bounds(rowptr_ptr, row)
    least = start_reduction("min", BLOCK_E, BLOCK_C)
    most = start_reduction("max", BLOCK_E, BLOCK_C)
    # A variance is a small difference of large numbers: float64 keeps it.
    sums = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float64)
    squares = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float64)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        places = edges
        if edge_ptr is not None:
            places = tl.load(perm_ptr + edges, mask=live, other=0).to(tl.int64)
        values = load_sum(
            x_ptr,
            scale_ptr,
            zero_point_ptr,
            sources,
            None,
            sources,
            edge_ptr,
            edge_weight_ptr,
            edge_bias_ptr,
            places,
            live,
            first,
            channels,
            x_width,
            features,
            BITS,
            BLOCK_C,
        )
        if MIN >= 0:
            least = reduce_edges(least, values, live, "min")
        if MAX >= 0:
            most = reduce_edges(most, values, live, "max")
        wide = tl.where(live[:, None], values, 0.0).to(tl.float64)
        sums += wide
        if VAR >= 0 or STD >= 0:
            squares += wide * wide
    degree = end - start
    divisor = tl.maximum(degree, 1).to(tl.float64)
    total = tl.sum(sums, axis=0, keep_dims=True)
    mean = total / divisor
    var = tl.sum(squares, axis=0, keep_dims=True) / divisor - mean * mean
    _store_all(
        total.to(tl.float32),
        mean.to(tl.float32),
        end_reduction(least, degree, "min"),
        end_reduction(most, degree, "max"),
        tl.where(var < 0.0, 0.0, var).to(tl.float32),
        degree,
        row,
        first,
        channels,
        x_dst_ptr,
        out_ptr,
        out_scale_ptr,
        out_zero_point_ptr,
        SUM,
        MEAN,
        MIN,
        MAX,
        VAR,
        STD,
        COUNT,
        OUT_BITS,
    )


@triton.jit
def _quantized_aggregate_many(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    rowptr_ptr,
    src_ptr,
    x_dst_ptr,
    out_scale_ptr,
    out_zero_point_ptr,
    out_ptr,
    channels,
    x_width,
    BITS: tl.constexpr,
    OUT_BITS: tl.constexpr,
    SUM: tl.constexpr,
    MEAN: tl.constexpr,
    MIN: tl.constexpr,
    MAX: tl.constexpr,
    VAR: tl.constexpr,
    STD: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y [N, COUNT * C] from codes x [S, C] and x_dst (f32 [N, C]); sums of steps are exact."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    start, end = load_row_bounds(rowptr_ptr, row)
    scale, zero_point = tl.load(scale_ptr), tl.load(zero_point_ptr)
    least = tl.full((BLOCK_E, BLOCK_C), 255, dtype=tl.int32)
    most = tl.full((BLOCK_E, BLOCK_C), -255, dtype=tl.int32)
    total = tl.zeros((1, BLOCK_C), dtype=tl.int64)
    squares_total = tl.zeros((1, BLOCK_C), dtype=tl.int64)
    for chunk in range(start, end, _CHUNK):
        sums = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.int32)
        squares = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.int32)
        for edge in range(chunk, tl.minimum(chunk + _CHUNK, end), BLOCK_E):
            edges = edge + tl.arange(0, BLOCK_E)
            live = edges < end
            sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
            codes = load_codes(x_ptr, sources, live, first, x_width, BITS, BLOCK_C).to(tl.int32)
            steps = tl.where(live[:, None], codes - zero_point, 0)
            least = tl.minimum(least, tl.where(live[:, None], steps, 255))
            most = tl.maximum(most, tl.where(live[:, None], steps, -255))
            sums += steps
            if VAR >= 0 or STD >= 0:
                squares += steps * steps
        total += tl.sum(sums, axis=0, keep_dims=True).to(tl.int64)
        squares_total += tl.sum(squares, axis=0, keep_dims=True).to(tl.int64)
    degree = end - start
    divisor = tl.maximum(degree, 1)
    spread = (divisor * squares_total - total * total).to(tl.float32)
    lowest = tl.where(degree > 0, tl.min(least, axis=0, keep_dims=True), 0)
    highest = tl.where(degree > 0, tl.max(most, axis=0, keep_dims=True), 0)
    _store_all(
        total.to(tl.float32) * scale,
        tl.math.div_rn(total.to(tl.float32), divisor.to(tl.float32)) * scale,
        lowest.to(tl.float32) * scale,
        highest.to(tl.float32) * scale,
        tl.math.div_rn(spread, (divisor * divisor).to(tl.float32)) * (scale * scale),
        degree,
        row,
        first,
        channels,
        x_dst_ptr,
        out_ptr,
        out_scale_ptr,
        out_zero_point_ptr,
        SUM,
        MEAN,
        MIN,
        MAX,
        VAR,
        STD,
        COUNT,
        OUT_BITS,
    )


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
    edges = {"perm": perm, "edge": edge, "edge_bias": edge_bias}
    return reject_strided(x=x, rowptr=rowptr, src=src, x_dst=x_dst, **edges)


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
    rows, places = rowptr.shape[0] - 1, _places(reduces)
    out = x.new_empty((rows, places["COUNT"] * x.shape[1]))
    edges = (perm, edge, edge_weight, edge_bias)
    _launch_floats(out, x, None, None, rowptr, src, x.shape[1], places, x_dst, edges, (None, None))
    return out


def _launch_floats(
    out,
    x,
    scale,
    zero_point,
    rowptr,
    src,
    channels,
    places,
    x_dst,
    edges,
    qparams,
    bits=8,
    out_bits=8,
) -> None:
    """Fill `out` with reductions of floats, or of codes of x as floats where it has a scale."""
    rows, (perm, edge, weight, bias) = rowptr.shape[0] - 1, edges
    blocks = _tile(src.shape[0], rows, channels)
    _aggregate_many[(rows, triton.cdiv(channels, blocks["BLOCK_C"]))](
        x,
        scale,
        zero_point,
        rowptr,
        src,
        x_dst,
        perm,
        edge,
        # Neighbouring lanes hold neighbouring channels.
        None if weight is None else weight.t().contiguous(),
        bias,
        *qparams,
        out,
        channels,
        x.shape[1],
        1 if edge is None else edge.shape[1],
        BITS=bits,
        OUT_BITS=out_bits,
        **places,
        **blocks,
        **EXACT,
    )


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
    edges = {"perm": perm, "edge": edge, "edge_bias": edge_bias}
    return reject_strided(x=x, rowptr=rowptr, src=src, x_dst=x_dst, **edges)


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
    rows, places = rowptr.shape[0] - 1, _places(reduces)
    dtype = torch.float32 if out_scale is None else torch.int8
    out = x.new_empty((rows, places["COUNT"] * channels), dtype=dtype)
    if edge is not None:
        edges, qparams = (perm, edge, edge_weight, edge_bias), (out_scale, out_zero_point)
        parts = (out, x, scale, zero_point, rowptr, src, channels, places, x_dst, edges, qparams)
        _launch_floats(*parts, bits, out_bits)
        return out if out_scale is None else pack(out, out_bits)
    blocks = _tile(src.shape[0], rows, channels)
    _quantized_aggregate_many[(rows, triton.cdiv(channels, blocks["BLOCK_C"]))](
        x,
        scale,
        zero_point,
        rowptr,
        src,
        x_dst,
        out_scale,
        out_zero_point,
        out,
        channels,
        x.shape[1],
        BITS=bits,
        OUT_BITS=out_bits,
        **places,
        **blocks,
        **EXACT,
    )
    # Bytes may hold codes of two reductions, which no program has both of.
    return out if out_scale is None else pack(out, out_bits)


def _places(reduces: str) -> dict[str, int]:
    """The place of each reduction in the result, -1 for one that is not wanted."""
    names = names_of(reduces)
    places = {name.upper(): -1 for name in MANY_REDUCES}
    return places | {name.upper(): i for i, name in enumerate(names)} | {"COUNT": len(names)}


def _tile(edges: int, rows: int, channels: int) -> dict[str, int]:
    """Half of what one reduction has: partial results are four, and two of them are wide."""
    blocks = tile(edges, rows, channels)
    return blocks | {"BLOCK_E": max(1, blocks["BLOCK_E"] // 2)}
