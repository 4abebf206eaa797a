"""Triton code of `gnnfx.kernels.aggregate_messages`: a program a destination and block of channels.

Messages are made in registers, BLOCK_E edges at a time, and reduced there.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.aggregate_messages import (
    GATED_ACTIVATIONS,
    MESSAGE_ACTIVATIONS,
    PLAIN_ACTIVATIONS,
    reduced_channels,
)
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

FIRST_GATED = tl.constexpr(len(PLAIN_ACTIVATIONS))
LOWEST = tl.constexpr(-3e38)  # no logit yet; finite, as the difference of two is taken


@triton.jit
def activate_messages(x, slope, ACTIVATION: tl.constexpr):
    """ACTIVATION is the place of the activation in MESSAGE_ACTIVATIONS; NaN stays NaN."""
    if ACTIVATION == 1:
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == 2:
        x = tl.where(x < 0.0, x * slope, x)
    elif ACTIVATION == 3:
        x = tl.math.div_rn(x, 1.0 + tl.exp(-x))
    elif ACTIVATION == 4:
        x = tl.math.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + tl.exp(-x))
    return x


@triton.jit
def _gate(values, gates, ACTIVATION: tl.constexpr):
    """The gated activation of that place in MESSAGE_ACTIVATIONS."""
    if ACTIVATION > FIRST_GATED:  # softplus
        small = tl.exp(-tl.abs(values))
        values = tl.where(values < 0.0, 0.0, values) + _log1p(small)
    return tl.math.div_rn(values, 1.0 + tl.exp(-gates))


@triton.jit
def _log1p(x):
    """log(1 + x) of numbers from 0 to 1: what rounding takes from 1 + x is made good."""
    total = 1.0 + x
    return tl.log(total) + tl.math.div_rn(x - (total - 1.0), total)


@triton.jit
def _load_edges(
    edge_ptr, weight_ptr, bias_ptr, places, live, first, channels, features, COLS: tl.constexpr
):
    """Features (f32 [E, COLS]) of edges, after a linear layer if there is a weight [D, C]."""
    if weight_ptr is None:
        own = load_rows(edge_ptr, places, live, first, channels, COLS)
    else:
        cols = first + tl.arange(0, COLS)
        inside = cols < channels
        own = tl.zeros((places.shape[0], COLS), dtype=tl.float32)
        for feature in range(0, features):
            values = tl.load(edge_ptr + places * features + feature, mask=live, other=0.0)
            weights = tl.load(weight_ptr + feature * channels + cols, mask=inside, other=0.0)
            own += values[:, None] * weights[None, :]
        if bias_ptr is not None:
            own += tl.load(bias_ptr + cols, mask=inside, other=0.0)[None, :]
    return own


@triton.jit
def load_sum(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    sources,
    x_dst_ptr,
    rows,
    edge_ptr,
    edge_weight_ptr,
    edge_bias_ptr,
    places,
    live,
    first,
    channels,
    x_width,
    features,
    BITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Messages (f32 [E, COLS]) to one row before their activation, channels `first`.. of them."""
    if scale_ptr is None:
        values = load_rows(x_ptr, sources, live, first, channels, COLS)
    else:
        codes = load_codes(x_ptr, sources, live, first, x_width, BITS, COLS).to(tl.int32)
        values = tl.load(scale_ptr) * (codes - tl.load(zero_point_ptr)).to(tl.float32)
    if x_dst_ptr is not None:
        values += load_rows(x_dst_ptr, rows, rows >= 0, first, channels, COLS)
    if edge_ptr is not None:
        values += _load_edges(
            edge_ptr, edge_weight_ptr, edge_bias_ptr, places, live, first, channels, features, COLS
        )
    return values


@triton.jit
def _aggregate_messages(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    rowptr_ptr,
    src_ptr,
    perm_ptr,
    x_dst_ptr,
    edge_ptr,
    edge_weight_ptr,
    edge_bias_ptr,
    temperature_ptr,
    bias_ptr,
    residual_ptr,
    out_scale_ptr,
    out_zero_point_ptr,
    out_ptr,
    channels,
    width,
    x_width,
    out_width,
    features,
    slope,
    offset,
    BITS: tl.constexpr,
    OUT_BITS: tl.constexpr,
    MESSAGE_ACTIVATION: tl.constexpr,
    REDUCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y [N, C] from x [S, width], floats or codes; edges are f32 [E, features] in the user's order.

    The width is C, or 2C where gates stand behind the values.
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    start, end = load_row_bounds(rowptr_ptr, row)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    row_mask = rows >= 0
    acc = start_reduction(REDUCE, BLOCK_E, BLOCK_C)
    weights = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float32)
    peak = tl.full((BLOCK_E, BLOCK_C), LOWEST, dtype=tl.float32)
    heat = tl.full((BLOCK_C,), 1.0, dtype=tl.float32)
    if temperature_ptr is not None:
        cols = first + tl.arange(0, BLOCK_C)
        heat = tl.load(temperature_ptr + cols, mask=cols < channels, other=0.0)
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
            x_dst_ptr,
            rows,
            edge_ptr,
            edge_weight_ptr,
            edge_bias_ptr,
            places,
            live,
            first,
            width,
            x_width,
            features,
            BITS,
            BLOCK_C,
        )
        if MESSAGE_ACTIVATION >= FIRST_GATED:
            gates = load_sum(
                x_ptr,
                scale_ptr,
                zero_point_ptr,
                sources,
                x_dst_ptr,
                rows,
                edge_ptr,
                edge_weight_ptr,
                edge_bias_ptr,
                places,
                live,
                channels + first,
                width,
                x_width,
                features,
                BITS,
                BLOCK_C,
            )
            values = _gate(values, gates, MESSAGE_ACTIVATION)
        else:
            values = activate_messages(values, slope, MESSAGE_ACTIVATION)
        values += offset
        if REDUCE == "softmax":
            logits = tl.where(live[:, None], values * heat[None, :], -float("inf"))
            higher = tl.maximum(peak, logits, propagate_nan=tl.PropagateNan.ALL)
            kept, weight = tl.exp(peak - higher), tl.exp(logits - higher)
            weights = weights * kept + weight
            acc = acc * kept + tl.where(live[:, None], weight * values, 0.0)
            peak = higher
        else:
            acc = reduce_edges(acc, values, live, REDUCE)
    if REDUCE == "softmax":
        kept = tl.exp(peak - tl.max(peak, axis=0, keep_dims=True))
        weights = tl.sum(weights * kept, axis=0, keep_dims=True)
        y = tl.math.div_rn(tl.sum(acc * kept, axis=0, keep_dims=True), weights + 1e-16)
    else:
        y = end_reduction(acc, end - start, REDUCE)
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


def reject_aggregate_messages(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    return reject_strided(
        x=x,
        rowptr=rowptr,
        src=src,
        perm=perm,
        x_dst=x_dst,
        edge=edge,
        edge_bias=edge_bias,
        temperature=temperature,
        bias=bias,
        residual=residual,
    )


def aggregate_messages(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return quantized_aggregate_messages(
        *(x, None, None, x.shape[1], rowptr, src, perm, x_dst, edge, edge_weight, edge_bias),
        *(message_activation, slope, reduce, offset, temperature, bias, residual, activation),
    )


def reject_quantized_aggregate_messages(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> str | None:
    half = reduced_channels(channels, message_activation)
    if message_activation in GATED_ACTIVATIONS and half * bits % 8:
        return f"codes of {half} gates of {bits} bits do not begin at a byte"
    return reject_aggregate_messages(
        *(x, rowptr, src, perm, x_dst, edge, None, edge_bias),
        temperature=temperature,
        bias=bias,
        residual=residual,
    )


def quantized_aggregate_messages(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    """Without a scale, x holds floats."""
    rows, width = rowptr.shape[0] - 1, channels
    channels = reduced_channels(width, message_activation)
    out = empty_result(x, rows, channels, out_scale, out_bits)
    blocks = tile(src.shape[0], rows, channels)
    _aggregate_messages[(rows, triton.cdiv(channels, blocks["BLOCK_C"]))](
        x,
        scale,
        zero_point,
        rowptr,
        src,
        perm,
        x_dst,
        edge,
        # Neighbouring lanes hold neighbouring channels.
        None if edge_weight is None else edge_weight.t().contiguous(),
        edge_bias,
        temperature,
        bias,
        residual,
        out_scale,
        out_zero_point,
        out,
        channels,
        width,
        x.shape[1],
        out.shape[1],
        1 if edge is None else edge.shape[1],
        slope,
        offset,
        BITS=bits,
        OUT_BITS=out_bits,
        MESSAGE_ACTIVATION=MESSAGE_ACTIVATIONS.index(message_activation),
        REDUCE=reduce,
        ACTIVATION=ACTIVATIONS.index(activation),
        **blocks,
        **EXACT,
    )
    return out
