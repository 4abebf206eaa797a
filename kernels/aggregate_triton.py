"""Triton code of `gnnfx.kernels.aggregate`: one program a destination row and block of channels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.codes_triton import (
    EXACT,
    add_bias,
    empty_result,
    load_codes,
    load_row_bounds,
    load_rows,
    reject_strided,
    store_rows,
)
from gnnfx.kernels.epilogue import ACTIVATIONS
from gnnfx.kernels.reduce_triton import end_reduction, reduce_edges, start_reduction, tile

# Edges whose products with codes, at most 128 * 255 each, fit an int32 sum together.
_CHUNK = tl.constexpr(65536)


@triton.jit
def _aggregate(
    x_ptr,
    rowptr_ptr,
    src_ptr,
    weight_ptr,
    row_scale_ptr,
    self_weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    channels,
    heads,
    head_channels,
    REDUCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y (f32 [N, C]) from x (f32 [S, C]); weight is [E, heads], C = heads * head_channels."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    start, end = load_row_bounds(rowptr_ptr, row)
    cols = first + tl.arange(0, BLOCK_C)
    acc = start_reduction(REDUCE, BLOCK_E, BLOCK_C)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        values = load_rows(x_ptr, sources, live, first, channels, BLOCK_C)  # [BLOCK_E, BLOCK_C]
        if weight_ptr is not None:
            places = edges[:, None] * heads + (cols // head_channels)[None, :]
            inside = live[:, None] & (cols < channels)[None, :]
            values *= tl.load(weight_ptr + places, mask=inside, other=0.0)
        acc = reduce_edges(acc, values, live, REDUCE)
    y = end_reduction(acc, end - start, REDUCE)  # [1, BLOCK_C]
    if row_scale_ptr is not None:
        y *= tl.load(row_scale_ptr + row)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    row_mask = rows >= 0
    if self_weight_ptr is not None:
        own = load_rows(x_ptr, rows, row_mask, first, channels, BLOCK_C)
        y += tl.load(self_weight_ptr) * own
    y = add_bias(y, bias_ptr, residual_ptr, rows, row_mask, first, channels, ACTIVATION)
    store_rows(out_ptr, y, rows, row_mask, first, channels, channels, None, None, 8)


@triton.jit
def _quantized_aggregate(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    rowptr_ptr,
    src_ptr,
    weight_ptr,
    weight_scale_ptr,
    row_scale_ptr,
    self_weight_ptr,
    bias_ptr,
    residual_ptr,
    out_scale_ptr,
    out_zero_point_ptr,
    out_ptr,
    channels,
    x_width,
    out_width,
    BITS: tl.constexpr,
    OUT_BITS: tl.constexpr,
    REDUCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y [N, C] from codes x [S, C] and weight codes (int8 [E]), exactly.

    Codes are summed as they are; the zero point is taken off once, times the sum of the weights.
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    start, end = load_row_bounds(rowptr_ptr, row)
    scale, zero_point = tl.load(scale_ptr), tl.load(zero_point_ptr)
    degree = end - start
    if REDUCE == "max" or REDUCE == "min":
        EMPTY: tl.constexpr = -128 if REDUCE == "max" else 127
        best = tl.full((BLOCK_E, BLOCK_C), EMPTY, dtype=tl.int32)
        for edge in range(start, end, BLOCK_E):
            edges = edge + tl.arange(0, BLOCK_E)
            live = edges < end
            sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
            codes = load_codes(x_ptr, sources, live, first, x_width, BITS, BLOCK_C).to(tl.int32)
            codes = tl.where(live[:, None], codes, EMPTY)
            best = tl.maximum(best, codes) if REDUCE == "max" else tl.minimum(best, codes)
        if REDUCE == "max":
            total = tl.max(best, axis=0, keep_dims=True)
        else:
            total = tl.min(best, axis=0, keep_dims=True)
        y = tl.where(degree > 0, total - zero_point, 0).to(tl.float32)
    else:
        total = tl.zeros((1, BLOCK_C), dtype=tl.int64)
        weights_total = tl.zeros((1, 1), dtype=tl.int64)
        for chunk in range(start, end, _CHUNK):
            acc = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.int32)
            weights_acc = tl.zeros((BLOCK_E,), dtype=tl.int32)
            for edge in range(chunk, tl.minimum(chunk + _CHUNK, end), BLOCK_E):
                edges = edge + tl.arange(0, BLOCK_E)
                live = edges < end
                sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
                codes = load_codes(x_ptr, sources, live, first, x_width, BITS, BLOCK_C)
                codes = codes.to(tl.int32)
                if weight_ptr is not None:
                    weights = tl.load(weight_ptr + edges, mask=live, other=0).to(tl.int32)
                    weights_acc += weights
                    codes *= weights[:, None]
                acc += codes
            total += tl.sum(acc, axis=0, keep_dims=True).to(tl.int64)
            if weight_ptr is not None:
                weights_total += tl.sum(weights_acc, axis=0).to(tl.int64)
        if weight_ptr is None:
            weights_total += degree
        y = (total - zero_point * weights_total).to(tl.float32)  # [1, BLOCK_C]
    multiplier = scale
    if weight_scale_ptr is not None:
        multiplier *= tl.load(weight_scale_ptr)
    if REDUCE == "mean":
        multiplier = tl.math.div_rn(multiplier, tl.maximum(degree, 1).to(tl.float32))
    if row_scale_ptr is not None:
        multiplier *= tl.load(row_scale_ptr + row)
    y *= multiplier
    rows = row + tl.zeros((1,), dtype=tl.int64)
    row_mask = rows >= 0
    if self_weight_ptr is not None:
        own = load_codes(x_ptr, rows, row_mask, first, x_width, BITS, BLOCK_C).to(tl.int32)
        y += tl.load(self_weight_ptr) * (scale * (own - zero_point).to(tl.float32))
    y = add_bias(y, bias_ptr, residual_ptr, rows, row_mask, first, channels, ACTIVATION)
    store_rows(
        out_ptr,
        y,
        rows,
        row_mask,
        first,
        channels,
        out_width,
        out_scale_ptr,
        out_zero_point_ptr,
        OUT_BITS,
    )


def reject_aggregate(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    if x.dtype != torch.float32:
        return f"x is {x.dtype}; the kernel takes float32"
    return reject_strided(
        x=x,
        rowptr=rowptr,
        src=src,
        weight=weight,
        row_scale=row_scale,
        bias=bias,
        residual=residual,
    )


def aggregate(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    rows, shape = rowptr.shape[0] - 1, x.shape[1:]
    channels = shape.numel()
    heads = weight.shape[1] if weight is not None and weight.dim() == 2 else 1
    out = torch.empty((rows, *shape), dtype=torch.float32, device=x.device)
    blocks = tile(src.shape[0], rows, channels)
    _aggregate[(rows, triton.cdiv(channels, blocks["BLOCK_C"]))](
        x,
        rowptr,
        src,
        weight,
        row_scale,
        self_weight,
        bias,
        residual,
        out,
        channels,
        heads,
        channels // heads,
        REDUCE=reduce,
        ACTIVATION=ACTIVATIONS.index(activation),
        **blocks,
        **EXACT,
    )
    return out


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
    return reject_strided(
        x=x,
        rowptr=rowptr,
        src=src,
        weight=weight,
        row_scale=row_scale,
        bias=bias,
        residual=residual,
    )


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
    rows = rowptr.shape[0] - 1
    out = empty_result(x, rows, channels, out_scale, out_bits)
    blocks = tile(src.shape[0], rows, channels)
    _quantized_aggregate[(rows, triton.cdiv(channels, blocks["BLOCK_C"]))](
        x,
        scale,
        zero_point,
        rowptr,
        src,
        weight,
        weight_scale,
        row_scale,
        self_weight,
        bias,
        residual,
        out_scale,
        out_zero_point,
        out,
        channels,
        x.shape[1],
        out.shape[1],
        BITS=bits,
        OUT_BITS=out_bits,
        REDUCE=reduce,
        ACTIVATION=ACTIVATIONS.index(activation),
        **blocks,
        **EXACT,
    )
    return out
