"""CPU code of `attend_gat` and of its integer form: scores of nodes, added for each edge."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from gnnfx.kernels.attention_numba import (
    EDGE,
    FACTOR,
    FLOATS,
    HEADS,
    LAST_EDGE,
    MEAN_HEADS,
    PADDED,
    ROWPTR,
    SCORE,
    SCORE_STRIDE,
    SCORES_AHEAD,
    SCRATCH,
    SRC,
    TARGET,
    TARGET_SCORE,
    TARGET_STRIDE,
    edges_at_a_time,
    invert_sums,
    launch_attention,
    logit_groups,
    mute_tail,
    reject_attention,
    weigh_chunk,
)
from gnnfx.kernels.attention_rows_numba import (
    add_chunk,
    add_chunk_by_head,
    finish_mean,
    finish_row,
    finish_row_by_head,
)
from gnnfx.kernels.csr_numba import piece_start, source
from gnnfx.kernels.epilogue_numba import PIECES, ROWS
from gnnfx.kernels.vectors_numba import (
    join,
    leaky_relu,
    load_f32,
    load_f32_like,
    prefetch,
    read_f32,
    repeat,
    scratch_floats,
    splat_f32,
    splat_f32_like,
    splat_i8,
    store,
    take_piece,
    write_f32,
)


@njit(forceinline=True)
def _repeat_target_scores(a, scratch, row, flat):
    """The destination's score of each head, around every `padded` lanes."""
    heads, padded = a[HEADS], a[PADDED]
    target = a[TARGET] + row * a[TARGET_STRIDE]
    if heads == 4:
        store(scratch + TARGET_SCORE, repeat(load_f32(target, 4), 16))
    elif heads == 8:
        store(scratch + TARGET_SCORE, repeat(load_f32(target, 8), 16))
    elif heads == 1:
        store(scratch + TARGET_SCORE, splat_f32_like(read_f32(target), flat))
    else:
        for head in range(heads):
            score = read_f32(target + 4 * head)
            for place in range(head, max(padded, 16), padded):
                write_f32(scratch + TARGET_SCORE + 4 * place, score)


@njit(forceinline=True)
def _edge_scores(a, edge, last, lanes):
    """The score of an edge's source [+ that of the edge]; of the last edge if there is none."""
    edge = min(edge, last)
    ahead = source(a[SRC], min(edge + SCORES_AHEAD, a[LAST_EDGE]))
    prefetch(a[SCORE] + ahead * a[SCORE_STRIDE], 1)
    scores = load_f32(a[SCORE] + source(a[SRC], edge) * a[SCORE_STRIDE], lanes)
    if a[EDGE] != 0:
        scores = scores + load_f32(a[EDGE] + 4 * lanes * edge, lanes)
    return scores


@njit(forceinline=True)
def _copy_scores(a, scratch, first, count):
    """Scores of sources [and edges], [count, padded], one after the other."""
    heads, padded, src, edges = a[HEADS], a[PADDED], a[SRC], a[EDGE]
    rows, row_stride = a[SCORE], a[SCORE_STRIDE]
    for i in range(count):
        ahead = source(src, min(first + i + SCORES_AHEAD, a[LAST_EDGE]))
        prefetch(rows + ahead * row_stride, 1)
        place = rows + source(src, first + i) * row_stride
        for head in range(heads):
            score = read_f32(place + 4 * head)
            if edges != 0:
                score += read_f32(edges + 4 * ((first + i) * heads + head))
            write_f32(scratch + 4 * (i * padded + head), score)


@njit(forceinline=True)
def _sixteen_scores(a, place, edge, last, flat):
    """Scores of as many edges as have sixteen, which `_copy_scores` left at `place` if it ran."""
    if a[HEADS] == 4:
        left = join(_edge_scores(a, edge, last, 4), _edge_scores(a, edge + 1, last, 4))
        right = join(_edge_scores(a, edge + 2, last, 4), _edge_scores(a, edge + 3, last, 4))
        return join(left, right)
    if a[HEADS] == 8:
        return join(_edge_scores(a, edge, last, 8), _edge_scores(a, edge + 1, last, 8))
    return load_f32_like(place, flat)


@njit(forceinline=True)
def _gat_logits(a, scratch, first, count, flat):
    """leaky_relu(score of the source + score of the destination [+ score of the edge])."""
    if a[HEADS] != 4 and a[HEADS] != 8:
        _copy_scores(a, scratch, first, count)
    slope = splat_f32_like(read_f32(a[FACTOR]), flat)
    groups, stride, columns = logit_groups(a, count)
    last, edges = first + count - 1, 16 // a[PADDED]
    for column in range(columns):
        target = load_f32_like(scratch + TARGET_SCORE + 64 * column, flat)
        for i in range(groups):
            place = scratch + 4 * (16 * column + i * stride)
            scores = _sixteen_scores(a, place, first + i * edges, last, flat)
            store(place, leaky_relu(scores + target, slope))


def _attend_gat(lanes, segment_lanes, by_head, quantized):
    def kernel(a):
        scratch = scratch_floats(SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        floats = splat_f32(np.float32(0), lanes)
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
                _repeat_target_scores(a, scratch, row, flat)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    _gat_logits(a, scratch, edge, count, flat)
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
    rows = {"x": x, "a_src": a_src, "a_dst": a_dst}
    others = {"a_edge": a_edge, "bias": bias, "residual": residual}
    return reject_attention(x, rowptr, src, rows, others)


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
    return launch_attention(
        _attend_gat,
        x,
        FLOATS,
        None,
        FLOATS,
        a_dst,
        rowptr,
        src,
        negative_slope,
        mean_heads,
        bias,
        residual,
        activation,
        score=a_src,
        edge=a_edge,
    )


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
    rows = {"x": x, "a_src": a_src, "a_dst": a_dst}
    others = {"a_edge": a_edge, "bias": bias, "residual": residual}
    return reject_attention(x, rowptr, src, rows, others)


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
    return launch_attention(
        _attend_gat,
        x,
        (scale, zero_point),
        None,
        FLOATS,
        a_dst,
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
        score=a_src,
        edge=a_edge,
    )
