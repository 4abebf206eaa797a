"""CPU code of `attend_gatv2` and of its integer form: scores of activated sums of rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from gnnfx.kernels.attention_numba import (
    ATT,
    FACTOR,
    FLOATS,
    HEAD_CHANNELS,
    HEADS,
    KEY,
    KEY_EDGE,
    KEY_EDGE_INDEX,
    KEY_SCALE,
    KEY_STRIDE,
    KEY_ZERO_POINT,
    MEAN_HEADS,
    PADDED,
    ROWPTR,
    SCRATCH,
    SRC,
    TARGET,
    TARGET_STRIDE,
    edges_at_a_time,
    invert_sums,
    launch_attention,
    mute_tail,
    read_qparams,
    reject_attention,
    weigh_chunk,
)
from gnnfx.kernels.attention_rows_numba import (
    add_chunk,
    add_chunk_by_head,
    edge_place,
    finish_mean,
    finish_row,
    finish_row_by_head,
    head_of,
    make_edges,
    prefetch_blocks,
    prefetch_pair,
)
from gnnfx.kernels.csr_numba import piece_start, source
from gnnfx.kernels.epilogue_numba import PIECES, ROWS
from gnnfx.kernels.quantize_numba import dequantize
from gnnfx.kernels.vectors_numba import (
    add_lanes,
    add_segments,
    leaky_relu,
    load_f32_like,
    load_floats,
    merge_lanes,
    multiply_add,
    read_f32,
    scratch_floats,
    splat_f32,
    splat_f32_like,
    splat_i8,
    store,
    take_piece,
    write_f32,
)


@njit(forceinline=True)
def _gatv2_scores(a, scratch, row, first, count, made, like, segment, lanes):
    """Logits [count, padded]: att . leaky_relu(source + destination [+ edge]) of each head."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    width, (edges, index, first_edge) = a[HEADS] * channels, made
    scale, zero_point = read_qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    for start in range(0, width, lanes):
        start = min(start, width - lanes)
        head = head_of(start, channels)
        target = load_f32_like(a[TARGET] + row * a[TARGET_STRIDE] + 4 * start, like)
        target = target - splat_f32_like(scale * np.float32(zero_point), target)
        att = load_f32_like(a[ATT] + 4 * start, like)
        scales = splat_f32_like(scale, att)
        slope = splat_f32_like(read_f32(a[FACTOR]), att)
        for i in range(count):
            prefetch_blocks(a, first + i, start, like)
            key = load_floats(rows + source(src, first + i) * stride, start, like)
            value = multiply_add(key, scales, target)
            if edges != 0:
                place = edge_place(index, first_edge + i) * width + start
                value = value + load_f32_like(edges + 4 * place, value)
            value = leaky_relu(value, slope) * att
            scores = add_segments(value, segment)
            out = scratch + 4 * (i * padded + head)
            if start % channels != 0:
                scores = scores + load_f32_like(out, scores)
            store(out, scores)


@njit(forceinline=True)
def _gatv2_scores_by_head(a, scratch, row, first, count, made, like, lanes):
    """The same, for heads of any number of channels."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    heads, att, targets = a[HEADS], a[ATT], a[TARGET] + row * a[TARGET_STRIDE]
    (edges, index, first_edge), edge = made, np.int64(0)
    scale, zero_point = read_qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    scales = splat_f32_like(scale, like)
    offset = splat_f32_like(scale * np.float32(zero_point), like)
    slope = splat_f32_like(read_f32(a[FACTOR]), like)
    for i in range(count):
        prefetch_pair(a, first + i)
        base = rows + source(src, first + i) * stride
        if edges != 0:
            edge = edges + 4 * edge_place(index, first_edge + i) * heads * channels
        for head in range(heads):
            total = splat_f32_like(np.float32(0), like)
            for channel in range(0, channels, lanes):
                done = max(channel - (channels - lanes), 0)
                place = head * channels + channel - done
                key = load_floats(base, place, like)
                target = load_f32_like(targets + 4 * place, like) - offset
                value = multiply_add(key, scales, target)
                if edges != 0:
                    value = value + load_f32_like(edge + 4 * place, like)
                value = leaky_relu(value, slope) * load_f32_like(att + 4 * place, like)
                if done > 0:
                    value = merge_lanes(splat_f32_like(np.float32(0), like), value, done)
                total = total + value
            write_f32(scratch + 4 * (i * padded + head), add_lanes(total))


def _attend_gatv2(lanes, segment_lanes, by_head, quantized):
    made_lanes = min(lanes, 64)  # those of four edges stay in registers

    def kernel(a):
        scratch = scratch_floats(SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        floats = splat_f32(np.float32(0), lanes)
        made_floats = splat_f32(np.float32(0), made_lanes)
        segment = splat_f32(np.float32(0), segment_lanes)
        flat = splat_f32(np.float32(0), 16)
        none = np.int64(0), np.int64(0), np.int64(0)
        rows, rowptr, chunk = a[ROWS], a[ROWPTR], edges_at_a_time(a)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            end = piece_start(rowptr, rows, a[PIECES], piece + 1)
            for row in range(begin, end):
                first, stop = source(rowptr, row), source(rowptr, row + 1)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    given = a[KEY_EDGE], a[KEY_EDGE_INDEX]
                    made = make_edges(a, scratch, given, edge, count, made_floats, made_lanes)
                    if by_head:
                        _gatv2_scores_by_head(a, scratch, row, edge, count, made, like, lanes)
                    else:
                        _gatv2_scores(a, scratch, row, edge, count, made, like, segment, lanes)
                    mute_tail(a, scratch, count, flat)
                    weigh_chunk(a, scratch, count, edge == first, flat)
                    if by_head:
                        add_chunk_by_head(a, scratch, edge, count, none, edge == first, like, lanes)
                    else:
                        add_chunk(
                            a, scratch, edge, count, none, edge == first, like, segment, lanes
                        )
                empty = first == stop
                if not empty:
                    invert_sums(a, scratch, flat)
                if a[MEAN_HEADS] != 0:
                    finish_mean(a, scratch, row, empty, segment, segment_lanes, lanes, by_head)
                elif by_head:
                    finish_row_by_head(a, scratch, row, empty, segment, lanes)
                else:
                    finish_row(a, scratch, row, empty, floats, segment, lanes)

    return kernel


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
    rows = {"x_src": x_src, "x_dst": x_dst}
    others = {"att": att, "edge": edge, "edge_index": edge_index, "edge_bias": edge_bias}
    others |= {"bias": bias, "residual": residual}
    return reject_attention(x_src, rowptr, src, rows, others)


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
    return launch_attention(
        _attend_gatv2,
        x_src,
        FLOATS,
        x_src,
        FLOATS,
        x_dst,
        rowptr,
        src,
        negative_slope,
        mean_heads,
        bias,
        residual,
        activation,
        att=att,
        key_edge=edge,
        key_edge_index=edge_index,
        edge_weight=edge_weight,
        edge_bias=edge_bias,
    )


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
    rows = {"x_src": x_src, "x_dst": x_dst}
    others = {"att": att, "edge": edge, "edge_index": edge_index, "edge_bias": edge_bias}
    others |= {"bias": bias, "residual": residual}
    return reject_attention(x_src, rowptr, src, rows, others)


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
    return launch_attention(
        _attend_gatv2,
        x_src,
        (scale_src, zero_point_src),
        x_src,
        (scale_src, zero_point_src),
        dequantize(x_dst.contiguous(), scale_dst, zero_point_dst, x_dst.shape[-1]),
        rowptr,
        src,
        negative_slope,
        mean_heads,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
        att=att,
        key_edge=edge,
        key_edge_index=edge_index,
        edge_weight=edge_weight,
        edge_bias=edge_bias,
    )
