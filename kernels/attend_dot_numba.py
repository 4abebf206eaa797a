"""CPU code of `attend_dot` and of its integer form: products of queries and keys."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from gnnfx.kernels.attention_numba import (
    EDGE,
    EDGE_INDEX,
    FACTOR,
    FLOATS,
    HEAD_CHANNELS,
    HEADS,
    KEY,
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
    logit_groups,
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
from gnnfx.kernels.vectors_numba import (
    add_lanes,
    add_segments,
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
def _dot_scores(a, scratch, row, first, count, made, like, segment, lanes):
    """Logits [count, padded] before scaling: query . (key [+ edge]) of each head.

    Codes are not shifted by their zero point: it adds as much to all logits of a destination.
    """
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    width, (edges, index, first_edge) = a[HEADS] * channels, made
    scale, _ = read_qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    for start in range(0, width, lanes):
        start = min(start, width - lanes)
        head = head_of(start, channels)
        query = load_f32_like(a[TARGET] + row * a[TARGET_STRIDE] + 4 * start, like)
        scales = splat_f32_like(scale, query)
        for i in range(count):
            prefetch_blocks(a, first + i, start, like)
            key = load_floats(rows + source(src, first + i) * stride, start, like)
            if edges != 0:
                edge = edges + 4 * (edge_place(index, first_edge + i) * width + start)
                key = multiply_add(key, scales, load_f32_like(edge, like))
            scores = add_segments(key * query, segment)
            out = scratch + 4 * (i * padded + head)
            if start % channels != 0:
                scores = scores + load_f32_like(out, scores)
            store(out, scores)


@njit(forceinline=True)
def _dot_scores_by_head(a, scratch, row, first, count, made, like, lanes):
    """The same, for heads of any number of channels."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    heads, (edges, index, first_edge) = a[HEADS], made
    queries = a[TARGET] + row * a[TARGET_STRIDE]
    scale, _ = read_qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    scales = splat_f32_like(scale, like)
    for i in range(count):
        prefetch_pair(a, first + i)
        base, edge = rows + source(src, first + i) * stride, np.int64(0)
        if edges != 0:
            edge = edges + 4 * edge_place(index, first_edge + i) * heads * channels
        for head in range(heads):
            total = splat_f32_like(np.float32(0), like)
            for channel in range(0, channels, lanes):
                done = max(channel - (channels - lanes), 0)
                place = head * channels + channel - done
                key = load_floats(base, place, like)
                if edge != 0:
                    key = multiply_add(key, scales, load_f32_like(edge + 4 * place, like))
                if done > 0:
                    key = merge_lanes(splat_f32_like(np.float32(0), like), key, done)
                total = multiply_add(key, load_f32_like(queries + 4 * place, like), total)
            write_f32(scratch + 4 * (i * padded + head), add_lanes(total))


@njit(forceinline=True)
def _scale_logits(a, scratch, count, flat):
    """Logits times FACTOR, and times the step of the keys where edges have not had it applied."""
    factor = read_f32(a[FACTOR])
    if a[EDGE_INDEX] == 0:
        factor *= read_qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])[0]
    groups, stride, columns = logit_groups(a, count)
    for column in range(columns):
        for i in range(groups):
            place = scratch + 4 * (16 * column + i * stride)
            store(place, load_f32_like(place, flat) * splat_f32_like(factor, flat))


def _attend_dot(lanes, segment_lanes, by_head, quantized):
    made_lanes = min(lanes, 64)  # those of four edges stay in registers

    def kernel(a):
        scratch = scratch_floats(SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        floats = splat_f32(np.float32(0), lanes)
        made_floats = splat_f32(np.float32(0), made_lanes)
        segment = splat_f32(np.float32(0), segment_lanes)
        flat = splat_f32(np.float32(0), 16)
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
                    given = a[EDGE], a[EDGE_INDEX]
                    made = make_edges(a, scratch, given, edge, count, made_floats, made_lanes)
                    if by_head:
                        _dot_scores_by_head(a, scratch, row, edge, count, made, like, lanes)
                    else:
                        _dot_scores(a, scratch, row, edge, count, made, like, segment, lanes)
                    _scale_logits(a, scratch, count, flat)
                    mute_tail(a, scratch, count, flat)
                    weigh_chunk(a, scratch, count, edge == first, flat)
                    if by_head:
                        add_chunk_by_head(a, scratch, edge, count, made, edge == first, like, lanes)
                    else:
                        add_chunk(
                            a, scratch, edge, count, made, edge == first, like, segment, lanes
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
    rows = {"query": query, "key": key, "value": value}
    others = {"edge": edge, "edge_index": edge_index, "edge_bias": edge_bias}
    others |= {"bias": bias, "residual": residual}
    return reject_attention(key, rowptr, src, rows, others)


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
    return launch_attention(
        _attend_dot,
        value,
        FLOATS,
        key,
        FLOATS,
        query,
        rowptr,
        src,
        score_scale,
        mean_heads,
        bias,
        residual,
        activation,
        edge=edge,
        edge_index=edge_index,
        edge_weight=edge_weight,
        edge_bias=edge_bias,
    )


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
    rows = {"query": query, "key": key, "value": value}
    others = {"edge": edge, "edge_index": edge_index, "edge_bias": edge_bias}
    others |= {"bias": bias, "residual": residual}
    return reject_attention(key, rowptr, src, rows, others)


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
    return launch_attention(
        _attend_dot,
        value,
        (value_scale, value_zero_point),
        key,
        (key_scale, key_zero_point),
        query,
        rowptr,
        src,
        score_scale,
        mean_heads,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
        edge=edge,
        edge_index=edge_index,
        edge_weight=edge_weight,
        edge_bias=edge_bias,
    )
