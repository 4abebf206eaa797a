"""Triton code of `gnnfx.kernels.attention`: one program a destination and block of heads.

GAT scores cost 4 bytes an edge and head, so a first walk over the edges finds the maximum and a
second one sums.  GATv2 scores cost a whole row of features, so one walk does both and rescales
what it has when the maximum grows (online softmax).  Nothing is stored per edge.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from gnnfx.kernels.attention import finish_heads
from gnnfx.kernels.codes_triton import EXACT, load_row_bounds, reject_strided

_TILE = 2048  # values of x that a program holds at once
_WIDEST = 4096  # channels of a head


@triton.jit
def _leaky_relu(x, slope):
    return tl.where(x > 0.0, x, x * slope)


@triton.jit
def _load_heads(x_ptr, rows, live, heads, num_heads, cols, channels, scale_ptr, zero_point_ptr):
    """Features (f32 [R, H, C]) of `rows`, dequantized if there is a scale; 0 outside."""
    inside = (heads < num_heads)[:, None] & (cols < channels)[None, :]
    mask = live[:, None, None] & inside[None, :, :]
    places = heads[:, None] * channels + cols[None, :]
    places = (rows * (num_heads * channels))[:, None, None] + places[None, :, :]
    x = tl.load(x_ptr + places, mask=mask, other=0)
    if scale_ptr is not None:
        centered = (x.to(tl.int32) - tl.load(zero_point_ptr)).to(tl.float32)
        x = tl.where(mask, centered * tl.load(scale_ptr), 0.0)
    return x


@triton.jit
def _gat_logits(
    a_src_ptr, src_stride, a_dst, a_edge_ptr, edges, sources, live, heads, num_heads, slope
):
    """Scores (f32 [E, H]) of edges; -inf for edges of other rows, so that they weigh nothing."""
    mask = live[:, None] & (heads < num_heads)[None, :]
    places = sources[:, None] * src_stride + heads[None, :]
    logits = tl.load(a_src_ptr + places, mask=mask, other=0.0) + a_dst
    if a_edge_ptr is not None:
        places = edges[:, None] * num_heads + heads[None, :]
        logits += tl.load(a_edge_ptr + places, mask=mask, other=0.0)
    return tl.where(live[:, None], _leaky_relu(logits, slope), -float("inf"))


@triton.jit
def _attend_gat(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    a_src_ptr,
    src_stride,
    a_dst_ptr,
    dst_stride,
    a_edge_ptr,
    rowptr_ptr,
    src_ptr,
    out_ptr,
    num_heads,
    channels,
    slope,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y (f32 [N, H, C]) = sum over edges of softmax(leaky_relu(a_src + a_dst + a_edge)) * x."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, end = load_row_bounds(rowptr_ptr, row)
    a_dst_ptr += row * dst_stride
    a_dst = tl.load(a_dst_ptr + heads, mask=heads < num_heads, other=0.0)[None, :]
    highest = tl.full((BLOCK_E, BLOCK_H), -float("inf"), dtype=tl.float32)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        logits = _gat_logits(
            a_src_ptr,
            src_stride,
            a_dst,
            a_edge_ptr,
            edges,
            sources,
            live,
            heads,
            num_heads,
            slope,
        )
        highest = tl.maximum(highest, logits)
    peak = tl.max(highest, axis=0)[None, :]  # [1, BLOCK_H]
    norm = tl.zeros((BLOCK_E, BLOCK_H), dtype=tl.float32)
    acc = tl.zeros((BLOCK_E, BLOCK_H, BLOCK_C), dtype=tl.float32)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        logits = _gat_logits(
            a_src_ptr,
            src_stride,
            a_dst,
            a_edge_ptr,
            edges,
            sources,
            live,
            heads,
            num_heads,
            slope,
        )
        weights = tl.exp(logits - peak)
        norm += weights
        acc += weights[:, :, None] * _load_heads(
            x_ptr, sources, live, heads, num_heads, cols, channels, scale_ptr, zero_point_ptr
        )
    total = tl.sum(norm, axis=0) + 1e-16  # [BLOCK_H]
    y = tl.math.div_rn(tl.sum(acc, axis=0), total[:, None])
    _store_heads(out_ptr, y, row, heads, num_heads, cols, channels)


@triton.jit
def _attend_gatv2(
    x_src_ptr,
    scale_src_ptr,
    zero_point_src_ptr,
    x_dst_ptr,
    scale_dst_ptr,
    zero_point_dst_ptr,
    att_ptr,
    edge_ptr,
    edge_index_ptr,
    rowptr_ptr,
    src_ptr,
    out_ptr,
    num_heads,
    channels,
    slope,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y (f32 [N, H, C]) = sum of softmax(att . leaky_relu(x_src + x_dst [+ edge])) * x_src."""
    row = tl.program_id(0).to(tl.int64)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    cols = tl.arange(0, BLOCK_C)
    start, end = load_row_bounds(rowptr_ptr, row)
    inside = (heads < num_heads)[:, None] & (cols < channels)[None, :]
    att_places = heads[:, None] * channels + cols[None, :]
    att = tl.load(att_ptr + att_places, mask=inside, other=0.0)[None, :, :]
    x_dst = _load_heads(
        x_dst_ptr,
        rows,
        rows >= 0,
        heads,
        num_heads,
        cols,
        channels,
        scale_dst_ptr,
        zero_point_dst_ptr,
    )
    peak = tl.full((1, BLOCK_H), -float("inf"), dtype=tl.float32)
    norm = tl.zeros((BLOCK_E, BLOCK_H), dtype=tl.float32)
    acc = tl.zeros((BLOCK_E, BLOCK_H, BLOCK_C), dtype=tl.float32)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        x = _load_heads(
            x_src_ptr,
            sources,
            live,
            heads,
            num_heads,
            cols,
            channels,
            scale_src_ptr,
            zero_point_src_ptr,
        )
        pairs = x + x_dst
        if edge_ptr is not None:
            places = tl.load(edge_index_ptr + edges, mask=live, other=0).to(tl.int64)
            pairs += _load_heads(
                edge_ptr, places, live, heads, num_heads, cols, channels, None, None
            )
        logits = tl.sum(att * _leaky_relu(pairs, slope), axis=2)  # [BLOCK_E, BLOCK_H]
        logits = tl.where(live[:, None], logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, axis=0)[None, :])
        # The first step scales sums of 0 by exp(-inf) = 0; `higher` is finite from there on.
        shrink = tl.exp(peak - higher)
        weights = tl.exp(logits - higher)
        norm = norm * shrink + weights
        acc = acc * shrink[:, :, None] + weights[:, :, None] * x
        peak = higher
    total = tl.sum(norm, axis=0) + 1e-16  # [BLOCK_H]
    y = tl.math.div_rn(tl.sum(acc, axis=0), total[:, None])
    _store_heads(out_ptr, y, row, heads, num_heads, cols, channels)


@triton.jit
def _attend_dot(
    query_ptr,
    key_ptr,
    key_scale_ptr,
    key_zero_point_ptr,
    value_ptr,
    value_scale_ptr,
    value_zero_point_ptr,
    edge_ptr,
    edge_index_ptr,
    rowptr_ptr,
    src_ptr,
    out_ptr,
    num_heads,
    channels,
    score_scale,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y (f32 [N, H, C]) = sum over edges of softmax(query . (key + edge)) * (value + edge)."""
    row = tl.program_id(0).to(tl.int64)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    cols = tl.arange(0, BLOCK_C)
    start, end = load_row_bounds(rowptr_ptr, row)
    query = _load_heads(query_ptr, rows, rows >= 0, heads, num_heads, cols, channels, None, None)
    peak = tl.full((1, BLOCK_H), -float("inf"), dtype=tl.float32)
    norm = tl.zeros((BLOCK_E, BLOCK_H), dtype=tl.float32)
    acc = tl.zeros((BLOCK_E, BLOCK_H, BLOCK_C), dtype=tl.float32)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        keys = _load_heads(
            key_ptr,
            sources,
            live,
            heads,
            num_heads,
            cols,
            channels,
            key_scale_ptr,
            key_zero_point_ptr,
        )
        values = _load_heads(
            value_ptr,
            sources,
            live,
            heads,
            num_heads,
            cols,
            channels,
            value_scale_ptr,
            value_zero_point_ptr,
        )
        if edge_ptr is not None:
            places = tl.load(edge_index_ptr + edges, mask=live, other=0).to(tl.int64)
            terms = _load_heads(
                edge_ptr, places, live, heads, num_heads, cols, channels, None, None
            )
            keys += terms
            values += terms
        logits = tl.sum(query * keys, axis=2) * score_scale  # [BLOCK_E, BLOCK_H]
        logits = tl.where(live[:, None], logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, axis=0)[None, :])
        # The first step scales sums of 0 by exp(-inf) = 0; `higher` is finite from there on.
        shrink = tl.exp(peak - higher)
        weights = tl.exp(logits - higher)
        norm = norm * shrink + weights
        acc = acc * shrink[:, :, None] + weights[:, :, None] * values
        peak = higher
    total = tl.sum(norm, axis=0) + 1e-16  # [BLOCK_H]
    y = tl.math.div_rn(tl.sum(acc, axis=0), total[:, None])
    _store_heads(out_ptr, y, row, heads, num_heads, cols, channels)


@triton.jit
def _store_heads(out_ptr, y, row, heads, num_heads, cols, channels):
    """Store y (f32 [H, C]) as heads and channels of one row."""
    inside = (heads < num_heads)[:, None] & (cols < channels)[None, :]
    places = heads[:, None] * channels + cols[None, :]
    tl.store(out_ptr + row * (num_heads * channels) + places, y, mask=inside)


def reject_attend_gat(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    if x.dtype not in (torch.float32, torch.int8):
        return f"x is {x.dtype}; the kernel takes float32 and int8"
    rows = {"a_src": a_src[:1], "a_dst": a_dst[:1]}  # they may lie side by side
    return reject_strided(x=x, **rows, rowptr=rowptr, src=src, a_edge=a_edge)


def attend_gat(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    rows = _launch_gat(x, None, None, a_src, a_dst, rowptr, src, a_edge, negative_slope)
    return finish_heads(rows, mean_heads, bias, residual, activation)


def reject_quantized_attend_gat(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> str | None:
    return reject_attend_gat(x, a_src, a_dst, rowptr, src, a_edge, negative_slope)


def quantized_attend_gat(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    rows = _launch_gat(x, scale, zero_point, a_src, a_dst, rowptr, src, a_edge, negative_slope)
    qparams = out_scale, out_zero_point, out_bits
    return finish_heads(rows, mean_heads, bias, residual, activation, *qparams)


def _launch_gat(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None,
    negative_slope: float,
) -> Tensor:
    rows, heads, channels = rowptr.shape[0] - 1, x.shape[1], x.shape[2]
    out = torch.empty((rows, heads, channels), dtype=torch.float32, device=x.device)
    block_c = min(128, triton.next_power_of_2(channels))
    blocks = _blocks(src.shape[0], rows, heads, block_c)
    grid = (rows, triton.cdiv(heads, blocks["BLOCK_H"]), triton.cdiv(channels, block_c))
    _attend_gat[grid](
        x,
        scale,
        zero_point,
        a_src,
        a_src.stride(0),
        a_dst,
        a_dst.stride(0),
        a_edge,
        rowptr,
        src,
        out,
        heads,
        channels,
        negative_slope,
        **blocks,
        **EXACT,
    )
    return out


def reject_attend_gatv2(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    if x_src.dtype not in (torch.float32, torch.int8):
        return f"x_src is {x_src.dtype}; the kernel takes float32 and int8"
    if x_src.shape[2] > _WIDEST:
        return f"a head has {x_src.shape[2]} channels; the kernel takes {_WIDEST}"
    rows = {"x_src": x_src, "x_dst": x_dst, "att": att, "edge": edge, "edge_index": edge_index}
    return reject_strided(**rows, rowptr=rowptr, src=src)


def attend_gatv2(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    qparams = (None, None)
    edges = _rows_of_edges(x_src, edge, edge_weight, edge_bias), edge_index
    rows = _launch_gatv2(x_src, qparams, x_dst, qparams, att, rowptr, src, edges, negative_slope)
    return finish_heads(rows, mean_heads, bias, residual, activation)


def reject_quantized_attend_gatv2(
    x_src: Tensor,
    scale_src: Tensor,
    zero_point_src: Tensor,
    x_dst: Tensor,
    scale_dst: Tensor,
    zero_point_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> str | None:
    return reject_attend_gatv2(x_src, x_dst, att, rowptr, src, edge, edge_index)


def quantized_attend_gatv2(
    x_src: Tensor,
    scale_src: Tensor,
    zero_point_src: Tensor,
    x_dst: Tensor,
    scale_dst: Tensor,
    zero_point_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    left, right = (scale_src, zero_point_src), (scale_dst, zero_point_dst)
    edges = _rows_of_edges(x_src, edge, edge_weight, edge_bias), edge_index
    rows = _launch_gatv2(x_src, left, x_dst, right, att, rowptr, src, edges, negative_slope)
    qparams = out_scale, out_zero_point, out_bits
    return finish_heads(rows, mean_heads, bias, residual, activation, *qparams)


def _launch_gatv2(
    x_src: Tensor,
    src_qparams: tuple[Tensor | None, Tensor | None],
    x_dst: Tensor,
    dst_qparams: tuple[Tensor | None, Tensor | None],
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edges: tuple[Tensor | None, Tensor | None],
    negative_slope: float,
) -> Tensor:
    rows, heads, channels = rowptr.shape[0] - 1, x_src.shape[1], x_src.shape[2]
    out = torch.empty((rows, heads, channels), dtype=torch.float32, device=x_src.device)
    blocks = _blocks(src.shape[0], rows, heads, triton.next_power_of_2(channels))
    _attend_gatv2[(rows, triton.cdiv(heads, blocks["BLOCK_H"]))](
        x_src,
        *src_qparams,
        x_dst,
        *dst_qparams,
        att,
        *edges,
        rowptr,
        src,
        out,
        heads,
        channels,
        negative_slope,
        **blocks,
        **EXACT,
    )
    return out


def reject_attend_dot(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    if key.dtype not in (torch.float32, torch.int8):
        return f"key is {key.dtype}; the kernel takes float32 and int8"
    if key.shape[2] > _WIDEST:
        return f"a head has {key.shape[2]} channels; the kernel takes {_WIDEST}"
    rows = {"query": query, "key": key, "value": value, "edge": edge}
    return reject_strided(**rows, rowptr=rowptr, src=src)


def attend_dot(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    keys, values = (key, None, None), (value, None, None)
    edges = _rows_of_edges(key, edge, edge_weight, edge_bias), edge_index
    rows = _launch_dot(query, keys, values, rowptr, src, edges, score_scale)
    return finish_heads(rows, mean_heads, bias, residual, activation)


def reject_quantized_attend_dot(
    query: Tensor,
    key: Tensor,
    key_scale: Tensor,
    key_zero_point: Tensor,
    value: Tensor,
    value_scale: Tensor,
    value_zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> str | None:
    return reject_attend_dot(query, key, value, rowptr, src, edge, edge_index)


def quantized_attend_dot(
    query: Tensor,
    key: Tensor,
    key_scale: Tensor,
    key_zero_point: Tensor,
    value: Tensor,
    value_scale: Tensor,
    value_zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    keys, values = (key, key_scale, key_zero_point), (value, value_scale, value_zero_point)
    edges = _rows_of_edges(key, edge, edge_weight, edge_bias), edge_index
    rows = _launch_dot(query, keys, values, rowptr, src, edges, score_scale)
    qparams = out_scale, out_zero_point, out_bits
    return finish_heads(rows, mean_heads, bias, residual, activation, *qparams)


def _launch_dot(
    query: Tensor,
    key: tuple[Tensor, Tensor | None, Tensor | None],
    value: tuple[Tensor, Tensor | None, Tensor | None],
    rowptr: Tensor,
    src: Tensor,
    edges: tuple[Tensor | None, Tensor | None],
    score_scale: float,
) -> Tensor:
    rows, heads, channels = query.shape
    out = torch.empty((rows, heads, channels), dtype=torch.float32, device=query.device)
    blocks = _blocks(src.shape[0], rows, heads, triton.next_power_of_2(channels))
    _attend_dot[(rows, triton.cdiv(heads, blocks["BLOCK_H"]))](
        query,
        *key,
        *value,
        *edges,
        rowptr,
        src,
        out,
        heads,
        channels,
        score_scale,
        **blocks,
        **EXACT,
    )
    return out


def _rows_of_edges(
    rows: Tensor, edge: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensor | None:
    """What edges add [E, H, C] to `rows` [S, H, C], in the order in which they are given."""
    if edge is None or weight is None:
        return edge
    made: Tensor = linear(edge, weight, bias).unflatten(1, rows.shape[1:])
    return made


def _blocks(edges: int, rows: int, heads: int, block_c: int) -> dict[str, int]:
    """Tile of a program: about 128 values of a row, and as many edges as an average row has."""
    block_h = min(triton.next_power_of_2(heads), max(1, 128 // block_c))
    lanes = triton.next_power_of_2(max(4, edges // max(rows, 1)))
    block_e = max(1, min(lanes, 64, _TILE // (block_h * block_c)))
    return {
        "BLOCK_E": block_e,
        "BLOCK_H": block_h,
        "BLOCK_C": block_c,
        "num_warps": 1 if block_e * block_h * block_c <= 1024 else 2,
    }
