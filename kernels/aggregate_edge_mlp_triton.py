"""Triton code of `gnnfx.kernels.aggregate_edge_mlp`: a program a destination and block of outputs.

BLOCK_E edges of the row at a time become a tile of hidden values, which meets the weight on tensor
cores (codes) or in float32, and what comes out is reduced in registers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.aggregate_messages import MESSAGE_ACTIVATIONS
from gnnfx.kernels.aggregate_messages_triton import activate_messages
from gnnfx.kernels.codes_triton import (
    EXACT,
    add_bias,
    load_codes,
    load_row_bounds,
    load_rows,
    reject_strided,
    store_rows,
    to_codes,
)
from gnnfx.kernels.epilogue import ACTIVATIONS
from gnnfx.kernels.linear_triton import weight_sums
from gnnfx.kernels.reduce_triton import end_reduction, reduce_edges, start_reduction


@triton.jit
def _load_hidden(
    x_ptr,
    x_dst_ptr,
    edge_ptr,
    row,
    sources,
    places,
    live,
    first,
    channels,
    slope,
    ACTIVATION: tl.constexpr,
    COLS: tl.constexpr,
):
    """act(x + x_dst + edge), f32 [E, COLS], of the channels `first`.. of edges into `row`."""
    values = load_rows(x_ptr, sources, live, first, channels, COLS)
    if x_dst_ptr is not None:
        rows = row + tl.zeros((1,), dtype=tl.int64)
        values += load_rows(x_dst_ptr, rows, rows >= 0, first, channels, COLS)
    if edge_ptr is not None:
        values += load_rows(edge_ptr, places, live, first, channels, COLS)
    return activate_messages(values, slope, ACTIVATION)


@triton.jit
def _aggregate_edge_mlp(
    x_ptr,
    rowptr_ptr,
    src_ptr,
    perm_ptr,
    weight_ptr,
    linear_bias_ptr,
    x_dst_ptr,
    edge_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    channels,
    num_outs,
    slope,
    MESSAGE_ACTIVATION: tl.constexpr,
    REDUCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y (f32 [N, O]) from x (f32 [S, K]) and the weight (f32 [O, K])."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_N
    start, end = load_row_bounds(rowptr_ptr, row)
    outs = first + tl.arange(0, BLOCK_N).to(tl.int64)
    out_mask = outs < num_outs
    acc = start_reduction(REDUCE, BLOCK_E, BLOCK_N)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        places = tl.load(perm_ptr + edges, mask=live, other=0).to(tl.int64)
        messages = tl.zeros((BLOCK_E, BLOCK_N), dtype=tl.float32)
        for k in range(0, channels, BLOCK_K):
            hidden = _load_hidden(
                x_ptr,
                x_dst_ptr,
                edge_ptr,
                row,
                sources,
                places,
                live,
                k,
                channels,
                slope,
                MESSAGE_ACTIVATION,
                BLOCK_K,
            )
            # Channels past the last one meet weights of 0, so their values do not matter.
            w = load_rows(weight_ptr, outs, out_mask, k, channels, BLOCK_K)
            messages = tl.dot(hidden, tl.trans(w), messages, input_precision="ieee")
        if linear_bias_ptr is not None:
            messages += tl.load(linear_bias_ptr + outs, mask=out_mask, other=0.0)[None, :]
        acc = reduce_edges(acc, messages, live, REDUCE)
    y = end_reduction(acc, end - start, REDUCE)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    y = add_bias(y, bias_ptr, residual_ptr, rows, rows >= 0, first, num_outs, ACTIVATION)
    store_rows(out_ptr, y, rows, rows >= 0, first, num_outs, num_outs, None, None, 8)


@triton.jit
def _quantized_aggregate_edge_mlp(
    x_ptr,
    rowptr_ptr,
    src_ptr,
    perm_ptr,
    hidden_scale_ptr,
    hidden_zero_point_ptr,
    weight_ptr,
    weight_scale_ptr,
    linear_bias_ptr,
    x_dst_ptr,
    edge_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    channels,
    weight_width,
    num_outs,
    slope,
    WEIGHT_BITS: tl.constexpr,
    MESSAGE_ACTIVATION: tl.constexpr,
    REDUCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y (f32 [N, O]) from x (f32 [S, K]), codes of hidden values and of the weight [O, K]."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_N
    start, end = load_row_bounds(rowptr_ptr, row)
    outs = first + tl.arange(0, BLOCK_N).to(tl.int64)
    out_mask = outs < num_outs
    scale, zero_point = tl.load(hidden_scale_ptr), tl.load(hidden_zero_point_ptr)
    multiplier = scale * tl.load(weight_scale_ptr + outs, mask=out_mask, other=0.0)
    sums = weight_sums(weight_ptr, outs, out_mask, channels, weight_width, WEIGHT_BITS, BLOCK_K)
    acc = start_reduction(REDUCE, BLOCK_E, BLOCK_N)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        places = tl.load(perm_ptr + edges, mask=live, other=0).to(tl.int64)
        total = tl.zeros((BLOCK_E, BLOCK_N), dtype=tl.int32)
        for k in range(0, channels, BLOCK_K):
            hidden = _load_hidden(
                x_ptr,
                x_dst_ptr,
                edge_ptr,
                row,
                sources,
                places,
                live,
                k,
                channels,
                slope,
                MESSAGE_ACTIVATION,
                BLOCK_K,
            )
            # Channels past the last one meet weights of 0, so their codes do not matter.
            codes = to_codes(hidden, scale, zero_point, 8).to(tl.int8)
            w = load_codes(weight_ptr, outs, out_mask, k, weight_width, WEIGHT_BITS, BLOCK_K)
            total = tl.dot(codes, tl.trans(w), total, out_dtype=tl.int32)
        messages = (total - zero_point * sums[None, :]).to(tl.float32) * multiplier[None, :]
        if linear_bias_ptr is not None:
            messages += tl.load(linear_bias_ptr + outs, mask=out_mask, other=0.0)[None, :]
        acc = reduce_edges(acc, messages, live, REDUCE)
    y = end_reduction(acc, end - start, REDUCE)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    y = add_bias(y, bias_ptr, residual_ptr, rows, rows >= 0, first, num_outs, ACTIVATION)
    store_rows(out_ptr, y, rows, rows >= 0, first, num_outs, num_outs, None, None, 8)


def reject_aggregate_edge_mlp(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    weight: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    return reject_strided(
        x=x,
        rowptr=rowptr,
        src=src,
        perm=perm,
        weight=weight,
        linear_bias=linear_bias,
        x_dst=x_dst,
        edge=edge,
        bias=bias,
        residual=residual,
    )


def aggregate_edge_mlp(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    weight: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    rows, (outs, channels) = rowptr.shape[0] - 1, weight.shape
    out = x.new_empty((rows, outs))
    blocks = _tile(src.shape[0], rows, outs, channels)
    _aggregate_edge_mlp[(rows, triton.cdiv(outs, blocks["BLOCK_N"]))](
        x,
        rowptr,
        src,
        perm,
        weight,
        linear_bias,
        x_dst,
        edge,
        bias,
        residual,
        out,
        channels,
        outs,
        slope,
        MESSAGE_ACTIVATION=MESSAGE_ACTIVATIONS.index(message_activation),
        REDUCE=reduce,
        ACTIVATION=ACTIVATIONS.index(activation),
        **blocks,
        **EXACT,
    )
    return out


def reject_quantized_aggregate_edge_mlp(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    hidden_scale: Tensor,
    hidden_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    weight_bits: int = 8,
) -> str | None:
    reason = reject_strided(weight_scale=weight_scale)
    return reason or reject_aggregate_edge_mlp(
        x, rowptr, src, perm, weight, linear_bias, x_dst, edge, bias=bias, residual=residual
    )


def quantized_aggregate_edge_mlp(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    hidden_scale: Tensor,
    hidden_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    weight_bits: int = 8,
) -> Tensor:
    rows, outs, channels = rowptr.shape[0] - 1, weight.shape[0], x.shape[1]
    out = x.new_empty((rows, outs))
    blocks = _tile(src.shape[0], rows, outs, channels)
    _quantized_aggregate_edge_mlp[(rows, triton.cdiv(outs, blocks["BLOCK_N"]))](
        x,
        rowptr,
        src,
        perm,
        hidden_scale,
        hidden_zero_point,
        weight,
        weight_scale,
        linear_bias,
        x_dst,
        edge,
        bias,
        residual,
        out,
        channels,
        weight.shape[1],
        outs,
        slope,
        WEIGHT_BITS=weight_bits,
        MESSAGE_ACTIVATION=MESSAGE_ACTIVATIONS.index(message_activation),
        REDUCE=reduce,
        ACTIVATION=ACTIVATIONS.index(activation),
        **blocks,
        **EXACT,
    )
    return out


def _tile(edges: int, rows: int, outs: int, channels: int) -> dict[str, int]:
    """Tile of a program; a product on tensor cores takes 16 edges and 32 channels at least."""
    return {
        "BLOCK_E": 16 if edges <= 16 * rows else 32,
        "BLOCK_N": min(64, max(16, triton.next_power_of_2(outs))),
        "BLOCK_K": 32 if channels <= 32 else 64,
        "num_warps": 4,
    }
