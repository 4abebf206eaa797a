"""CPU code of `gnnfx.kernels.attention`: all heads of one destination, some of its edges at a time.

The logits of a few edges are computed, the running maximum and sum of each head are brought up to
date (sums so far are rescaled where the maximum grew), and the rows of these edges, still in the
cache, are added.  Nothing is as long as the edge list.

Channels are taken in blocks of LANES.  Where a head has a power of two of channels, a block spans
several heads, so that a row of 128 channels is one block in registers; else blocks lie within a
head, the last one over the one before it, and four of them are summed side by side.

Logits lie side by side as well: [edges, padded], where padded is a power of two of heads.  Sixteen
lanes hold those of several edges.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import reject_large
from gnnfx.kernels.csr_numba import piece_start, source
from gnnfx.kernels.epilogue_numba import (
    FIRST_FREE,
    PIECES,
    ROWS,
    epilogue_arguments,
    finish,
)
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize_numba import dequantize, pack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    add_lanes,
    add_segments,
    exp,
    greater,
    leaky_relu,
    load_f32,
    load_f32_like,
    load_steps,
    merge_lanes,
    multiply_add,
    prefetch,
    read_f32,
    read_i32,
    rotate,
    scratch_floats,
    splat_f32,
    splat_f32_like,
    splat_i8,
    spread,
    store,
    take_piece,
    write_f32,
)

# VALUE are the rows that are summed, KEY those that are scored (0 for GAT, which has SCORE);
# TARGET are the destination's rows: scores, features or queries.  Strides are in bytes.
HEADS, PADDED, HEAD_CHANNELS, MEAN_HEADS, ROWPTR, SRC = range(FIRST_FREE, FIRST_FREE + 6)
VALUE, VALUE_STRIDE, VALUE_SCALE, VALUE_ZERO_POINT = range(FIRST_FREE + 6, FIRST_FREE + 10)
KEY, KEY_STRIDE, KEY_SCALE, KEY_ZERO_POINT = range(FIRST_FREE + 10, FIRST_FREE + 14)
TARGET, TARGET_STRIDE, FACTOR = range(FIRST_FREE + 14, FIRST_FREE + 17)
SCORE, SCORE_STRIDE, ATT, EDGE, EDGE_INDEX = range(FIRST_FREE + 17, FIRST_FREE + 22)
ROW_BYTES, LAST_EDGE, AHEAD = range(FIRST_FREE + 22, FIRST_FREE + 25)

MOST_HEADS = 256
MOST_CHANNELS = 4096  # of all heads together
_MOST_LANES = 128
_CHUNK_VALUES = 1024  # logits at a time; at least four edges of them
_CHUNK_EDGES = 32
_SCORES_AHEAD = 48  # edges between asking for scores and reading them
_BYTES_AHEAD = 4096  # of rows asked for and not read yet, of 16 edges at most
# Scratch memory: logits; for each head its maximum, sum, rescaling and target score; sums by block.
_HIGHEST, _SUM, _RESCALE, _SCORE = (4 * (_CHUNK_VALUES + i * MOST_HEADS) for i in range(4))
_ROW = 4 * (_CHUNK_VALUES + 4 * MOST_HEADS)
_SCRATCH = _CHUNK_VALUES + 4 * MOST_HEADS + 2 * MOST_CHANNELS + 64


@njit(forceinline=True)
def _groups(a, count):
    """(groups of 16 logits, floats between them, such columns) of the logits of some edges."""
    padded = a[PADDED]
    if padded <= 16:
        return (count * padded + 15) // 16, 16, 1
    return count, padded, padded // 16


@njit(forceinline=True)
def _start_row(a, scratch, flat):
    """No edges yet."""
    for head in range(0, max(a[PADDED], 16), 16):
        store(scratch + _HIGHEST + 4 * head, splat_f32_like(np.float32(-np.inf), flat))
        store(scratch + _SUM + 4 * head, splat_f32_like(np.float32(0), flat))


@njit(forceinline=True)
def _prefetch_row(a, rows, stride, edge):
    """Start loading the row that an edge reads, or the last edge if there is no such edge."""
    start = rows + source(a[SRC], min(edge, a[LAST_EDGE])) * stride
    for line in range(0, a[ROW_BYTES], 64):
        prefetch(start + line, 1)


@njit(forceinline=True)
def _prefetch_pair(a, edge):
    """Start loading the key that will be scored soon, and the value that is read after that."""
    _prefetch_row(a, a[KEY], a[KEY_STRIDE], edge + a[AHEAD])
    if a[VALUE] != a[KEY]:
        _prefetch_row(a, a[VALUE], a[VALUE_STRIDE], edge)


@njit(forceinline=True)
def _mute_tail(a, scratch, count, flat):
    """Let the places behind the last edge weigh nothing."""
    groups, stride, _ = _groups(a, count)
    if a[PADDED] < 16:
        place = scratch + 4 * (groups - 1) * stride
        nothing = splat_f32_like(np.float32(-np.inf), flat)
        live = count * a[PADDED] - 16 * (groups - 1)
        store(place, merge_lanes(load_f32_like(place, flat), nothing, live))


@njit(forceinline=True)
def _repeat_target_scores(a, scratch, row):
    """The destination's score of each head, around every `padded` lanes."""
    heads, padded = a[HEADS], a[PADDED]
    for head in range(heads):
        score = read_f32(a[TARGET] + row * a[TARGET_STRIDE] + 4 * head)
        for place in range(head, max(padded, 16), padded):
            write_f32(scratch + _SCORE + 4 * place, score)


@njit(forceinline=True)
def _gat_logits(a, scratch, first, count, flat):
    """leaky_relu(score of the source + score of the destination [+ score of the edge])."""
    heads, padded, src, edges = a[HEADS], a[PADDED], a[SRC], a[EDGE]
    rows, row_stride = a[SCORE], a[SCORE_STRIDE]
    for i in range(count):
        ahead = source(src, min(first + i + _SCORES_AHEAD, a[LAST_EDGE]))
        prefetch(rows + ahead * row_stride, 1)
        place = rows + source(src, first + i) * row_stride
        out, head = scratch + 4 * i * padded, 0
        while head + 4 <= heads:
            scores = load_f32(place + 4 * head, 4)
            if edges != 0:
                scores = scores + load_f32(edges + 4 * ((first + i) * heads + head), 4)
            store(out + 4 * head, scores)
            head += 4
        while head < heads:
            score = read_f32(place + 4 * head)
            if edges != 0:
                score += read_f32(edges + 4 * ((first + i) * heads + head))
            write_f32(out + 4 * head, score)
            head += 1
    slope = splat_f32_like(read_f32(a[FACTOR]), flat)
    groups, stride, columns = _groups(a, count)
    for column in range(columns):
        target = load_f32_like(scratch + _SCORE + 64 * column, flat)
        for i in range(groups):
            place = scratch + 4 * (16 * column + i * stride)
            store(place, leaky_relu(load_f32_like(place, flat) + target, slope))


@njit(forceinline=True)
def _qparams(scale, zero_point):
    """Scale and zero point at two addresses: 1 and 0 for floats, which have none."""
    if scale == 0:
        return np.float32(1), np.int32(0)
    return read_f32(scale), read_i32(zero_point)


@njit(forceinline=True)
def _gatv2_scores(a, scratch, row, first, count, like, segment, lanes):
    """Logits [count, padded]: att . leaky_relu(source + destination) of each head."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    width = a[HEADS] * channels
    scale, zero_point = _qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    for start in range(0, width, lanes):
        start = min(start, width - lanes)
        head = _head_of(start, channels)
        target = load_f32_like(a[TARGET] + row * a[TARGET_STRIDE] + 4 * start, like)
        att = load_f32_like(a[ATT] + 4 * start, like)
        scales = splat_f32_like(scale, att)
        slope = splat_f32_like(read_f32(a[FACTOR]), att)
        for i in range(count):
            if start == 0:
                _prefetch_pair(a, first + i)
            key = load_steps(rows + source(src, first + i) * stride, start, zero_point, like)
            value = leaky_relu(multiply_add(key, scales, target), slope) * att
            scores = add_segments(value, segment)
            out = scratch + 4 * (i * padded + head)
            if start % channels != 0:
                scores = scores + load_f32_like(out, scores)
            store(out, scores)


@njit(forceinline=True)
def _gatv2_scores_by_head(a, scratch, row, first, count, like, lanes):
    """The same, for heads of any number of channels."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    heads, att, targets = a[HEADS], a[ATT], a[TARGET] + row * a[TARGET_STRIDE]
    scale, zero_point = _qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    scales = splat_f32_like(scale, like)
    slope = splat_f32_like(read_f32(a[FACTOR]), like)
    for i in range(count):
        _prefetch_pair(a, first + i)
        base = rows + source(src, first + i) * stride
        for head in range(heads):
            total = splat_f32_like(np.float32(0), like)
            for channel in range(0, channels, lanes):
                done = max(channel - (channels - lanes), 0)
                place = head * channels + channel - done
                key = load_steps(base, place, zero_point, like)
                value = multiply_add(key, scales, load_f32_like(targets + 4 * place, like))
                value = leaky_relu(value, slope) * load_f32_like(att + 4 * place, like)
                if done > 0:
                    value = merge_lanes(splat_f32_like(np.float32(0), like), value, done)
                total = total + value
            write_f32(scratch + 4 * (i * padded + head), add_lanes(total))


@njit(forceinline=True)
def _dot_scores(a, scratch, row, first, count, like, segment, lanes):
    """Logits [count, padded] before scaling: query . (key [+ edge]) of each head."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    width, edges, index = a[HEADS] * channels, a[EDGE], a[EDGE_INDEX]
    scale, zero_point = _qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    for start in range(0, width, lanes):
        start = min(start, width - lanes)
        head = _head_of(start, channels)
        query = load_f32_like(a[TARGET] + row * a[TARGET_STRIDE] + 4 * start, like)
        scales = splat_f32_like(scale, query)
        for i in range(count):
            if start == 0:
                _prefetch_pair(a, first + i)
            key = load_steps(rows + source(src, first + i) * stride, start, zero_point, like)
            if index != 0:
                edge = edges + 4 * (source(index, first + i) * width + start)
                key = multiply_add(key, scales, load_f32_like(edge, like))
            scores = add_segments(key * query, segment)
            out = scratch + 4 * (i * padded + head)
            if start % channels != 0:
                scores = scores + load_f32_like(out, scores)
            store(out, scores)


@njit(forceinline=True)
def _dot_scores_by_head(a, scratch, row, first, count, like, lanes):
    """The same, for heads of any number of channels."""
    channels, padded, src, rows, stride = a[HEAD_CHANNELS], a[PADDED], a[SRC], a[KEY], a[KEY_STRIDE]
    heads, edges, index = a[HEADS], a[EDGE], a[EDGE_INDEX]
    queries = a[TARGET] + row * a[TARGET_STRIDE]
    scale, zero_point = _qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])
    scales = splat_f32_like(scale, like)
    for i in range(count):
        _prefetch_pair(a, first + i)
        base, edge = rows + source(src, first + i) * stride, np.int64(0)
        if index != 0:
            edge = edges + 4 * source(index, first + i) * heads * channels
        for head in range(heads):
            total = splat_f32_like(np.float32(0), like)
            for channel in range(0, channels, lanes):
                done = max(channel - (channels - lanes), 0)
                place = head * channels + channel - done
                key = load_steps(base, place, zero_point, like)
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
        factor *= _qparams(a[KEY_SCALE], a[KEY_ZERO_POINT])[0]
    groups, stride, columns = _groups(a, count)
    for column in range(columns):
        for i in range(groups):
            place = scratch + 4 * (16 * column + i * stride)
            store(place, load_f32_like(place, flat) * splat_f32_like(factor, flat))


@njit(forceinline=True)
def _fold_greatest(value, padded):
    """The greatest of the lanes of each head, in all of them, for heads every `padded` lanes."""
    if padded <= 8:
        value = greater(value, rotate(value, 8))
    if padded <= 4:
        value = greater(value, rotate(value, 4))
    if padded <= 2:
        value = greater(value, rotate(value, 2))
    if padded <= 1:
        value = greater(value, rotate(value, 1))
    return value


@njit(forceinline=True)
def _fold_sum(value, padded):
    """The sum of the lanes of each head, in all of them, for heads every `padded` lanes."""
    if padded <= 8:
        value = value + rotate(value, 8)
    if padded <= 4:
        value = value + rotate(value, 4)
    if padded <= 2:
        value = value + rotate(value, 2)
    if padded <= 1:
        value = value + rotate(value, 1)
    return value


@njit(forceinline=True)
def _weigh_chunk(a, scratch, count, flat):
    """Turn logits into exp(logit - maximum so far), and update maximum, sum and rescaling."""
    groups, stride, columns = _groups(a, count)
    padded = a[PADDED]
    for column in range(columns):
        place = scratch + 64 * column
        before = load_f32_like(place + _HIGHEST, flat)
        highest = before
        for i in range(groups):
            highest = greater(highest, load_f32_like(place + 4 * i * stride, flat))
        highest = _fold_greatest(highest, padded)
        rescale = exp(before - highest)
        total = load_f32_like(place + _SUM, flat) * rescale
        for i in range(groups):
            weight = exp(load_f32_like(place + 4 * i * stride, flat) - highest)
            store(place + 4 * i * stride, weight)
            total = total + weight
        store(place + _HIGHEST, highest)
        store(place + _RESCALE, rescale)
        store(place + _SUM, total)


@njit(forceinline=True)
def _head_of(start, channels):
    """The head of a channel of the row; most rows are one block, which spares the division."""
    return start // channels if start > 0 else np.int64(0)


@njit(forceinline=True)
def _add_chunk(a, scratch, first, count, is_first, like, segment, lanes):
    """Add the weighted rows of some edges to the sums so far, a block of heads at a time."""
    channels, padded, src, rows, stride = (
        a[HEAD_CHANNELS],
        a[PADDED],
        a[SRC],
        a[VALUE],
        a[VALUE_STRIDE],
    )
    width, edges, index = a[HEADS] * channels, a[EDGE], a[EDGE_INDEX]
    alone = a[KEY] == 0
    scale, zero_point = _qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])
    for block in range(0, width, lanes):
        start = min(block, width - lanes)
        weights = scratch + 4 * _head_of(start, channels)
        total = splat_f32_like(np.float32(0), like)
        for i in range(count):
            if start == 0 and alone:
                _prefetch_row(a, rows, stride, first + i + a[AHEAD])
            value = load_steps(rows + source(src, first + i) * stride, start, zero_point, like)
            if index != 0:
                edge = load_f32_like(edges + 4 * (source(index, first + i) * width + start), like)
                value = multiply_add(value, splat_f32_like(scale, like), edge)
            total = multiply_add(value, spread(weights + 4 * i * padded, segment, like), total)
        out = scratch + _ROW + 4 * block
        if not is_first:
            rescale = spread(weights + _RESCALE, segment, like)
            total = multiply_add(load_f32_like(out, like), rescale, total)
        store(out, total)


@njit(forceinline=True)
def _next_block(a, head, channel, lanes):
    """The block behind one that starts at a channel of a head."""
    if channel + lanes < a[HEAD_CHANNELS]:
        return head, channel + lanes
    return min(head + 1, a[HEADS] - 1), np.int64(0)


@njit(forceinline=True)
def _weighted(base, start, edge, weight, total, scale, zero_point, like):
    """`total` and one block of one row, weighted."""
    value = load_steps(base, start, zero_point, like)
    if edge != 0:
        value = multiply_add(value, splat_f32_like(scale, like), load_f32_like(edge, like))
    return multiply_add(value, splat_f32_like(read_f32(weight), like), total)


@njit(forceinline=True)
def _store_sum(out, rescale, total, is_first, like):
    """Keep one block of the sums; those of the edges before it are rescaled."""
    if not is_first:
        factor = splat_f32_like(read_f32(rescale), like)
        total = multiply_add(load_f32_like(out, like), factor, total)
    store(out, total)


@njit(forceinline=True)
def _add_chunk_by_head(a, scratch, first, count, is_first, like, lanes):
    """Add the weighted rows of some edges to the sums so far, four blocks of a head at a time."""
    heads, channels, padded, src = a[HEADS], a[HEAD_CHANNELS], a[PADDED], a[SRC]
    rows, stride, edges, index = a[VALUE], a[VALUE_STRIDE], a[EDGE], a[EDGE_INDEX]
    alone = a[KEY] == 0
    blocks, most = heads * ((channels + lanes - 1) // lanes), channels - lanes
    scale, zero_point = _qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])
    zero = splat_f32_like(np.float32(0), like)
    h3, c3 = np.int64(-1), channels
    for block in range(0, blocks, 4):
        h0, c0 = _next_block(a, h3, c3, lanes)
        h1, c1 = _next_block(a, h0, c0, lanes)
        h2, c2 = _next_block(a, h1, c1, lanes)
        h3, c3 = _next_block(a, h2, c2, lanes)
        p0, p1 = h0 * channels + min(c0, most), h1 * channels + min(c1, most)
        p2, p3 = h2 * channels + min(c2, most), h3 * channels + min(c3, most)
        t0, t1, t2, t3 = zero, zero, zero, zero
        for i in range(count):
            if block == 0 and alone:
                _prefetch_row(a, rows, stride, first + i + a[AHEAD])
            base, w = rows + source(src, first + i) * stride, scratch + 4 * i * padded
            e0 = e1 = e2 = e3 = np.int64(0)
            if index != 0:
                edge = edges + 4 * source(index, first + i) * heads * channels
                e0, e1, e2, e3 = edge + 4 * p0, edge + 4 * p1, edge + 4 * p2, edge + 4 * p3
            t0 = _weighted(base, p0, e0, w + 4 * h0, t0, scale, zero_point, like)
            t1 = _weighted(base, p1, e1, w + 4 * h1, t1, scale, zero_point, like)
            t2 = _weighted(base, p2, e2, w + 4 * h2, t2, scale, zero_point, like)
            t3 = _weighted(base, p3, e3, w + 4 * h3, t3, scale, zero_point, like)
        out, rescale = scratch + _ROW + 4 * block * lanes, scratch + _RESCALE
        _store_sum(out, rescale + 4 * h0, t0, is_first, like)
        _store_sum(out + 4 * lanes, rescale + 4 * h1, t1, is_first, like)
        _store_sum(out + 8 * lanes, rescale + 4 * h2, t2, is_first, like)
        _store_sum(out + 12 * lanes, rescale + 4 * h3, t3, is_first, like)


@njit(forceinline=True)
def _invert_sums(a, scratch, flat):
    """Turn the sums of weights into what sums of rows are multiplied with."""
    scale = np.float32(1)
    if a[EDGE_INDEX] == 0:
        scale = _qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])[0]
    for column in range(0, max(a[PADDED], 16), 16):
        place = scratch + _SUM + 4 * column
        total = _fold_sum(load_f32_like(place, flat), a[PADDED])
        total = total + splat_f32_like(np.float32(1e-16), flat)
        store(place, splat_f32_like(scale, flat) / total)


@njit(forceinline=True)
def _finish_row(a, scratch, row, is_empty, like, segment, lanes):
    """Write the row whose sums are complete."""
    channels, width = a[HEAD_CHANNELS], a[HEADS] * a[HEAD_CHANNELS]
    for block in range(0, width, lanes):
        start = min(block, width - lanes)
        total = splat_f32_like(np.float32(0), like)
        if not is_empty:
            factor = spread(scratch + _SUM + 4 * _head_of(start, channels), segment, like)
            total = load_f32_like(scratch + _ROW + 4 * block, like) * factor
        finish(total, a, row, start)


@njit(forceinline=True)
def _finish_row_by_head(a, scratch, row, is_empty, like, lanes):
    """Write the row whose sums are complete, for blocks within heads."""
    channels, place = a[HEAD_CHANNELS], scratch + _ROW
    for head in range(a[HEADS]):
        factor = splat_f32_like(read_f32(scratch + _SUM + 4 * head), like)
        for channel in range(0, channels, lanes):
            total = splat_f32_like(np.float32(0), like)
            if not is_empty:
                total = load_f32_like(place, like) * factor
            finish(total, a, row, head * channels + min(channel, channels - lanes))
            place += 4 * lanes


@njit(forceinline=True)
def _finish_mean(a, scratch, row, is_empty, segment, segment_lanes, lanes, by_head):
    """Write the mean over the heads of a row whose sums are complete."""
    heads, channels = a[HEADS], a[HEAD_CHANNELS]
    per_head = (channels + segment_lanes - 1) // segment_lanes * segment_lanes
    last = heads * channels - lanes
    for channel in range(0, channels, segment_lanes):
        total = splat_f32_like(np.float32(0), segment)
        for head in range(heads if not is_empty else 0):
            # Where the sums of this head and channel lie: blocks one after another.
            place = head * channels + channel
            if by_head:
                place = head * per_head + channel
            elif place >= last:
                place += (last + lanes - 1) // lanes * lanes - last
            rows = load_f32_like(scratch + _ROW + 4 * place, segment)
            factor = splat_f32_like(read_f32(scratch + _SUM + 4 * head), segment)
            total = multiply_add(rows, factor, total)
        total = total / splat_f32_like(np.float32(heads), segment)
        finish(total, a, row, min(channel, channels - segment_lanes))


@njit(forceinline=True)
def _chunk(a):
    """Edges at a time."""
    return min(_CHUNK_EDGES, _CHUNK_VALUES // max(a[PADDED], 16))


def _attend_gat(lanes, segment_lanes, by_head, quantized):
    def kernel(a):
        scratch = scratch_floats(_SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        floats = splat_f32(np.float32(0), lanes)
        segment = splat_f32(np.float32(0), segment_lanes)
        flat = splat_f32(np.float32(0), 16)
        rows, rowptr, chunk = a[ROWS], a[ROWPTR], _chunk(a)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            end = piece_start(rowptr, rows, a[PIECES], piece + 1)
            for row in range(begin, end):
                first, stop = source(rowptr, row), source(rowptr, row + 1)
                _start_row(a, scratch, flat)
                _repeat_target_scores(a, scratch, row)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    _gat_logits(a, scratch, edge, count, flat)
                    _mute_tail(a, scratch, count, flat)
                    _weigh_chunk(a, scratch, count, flat)
                    if by_head:
                        _add_chunk_by_head(a, scratch, edge, count, edge == first, like, lanes)
                    else:
                        _add_chunk(a, scratch, edge, count, edge == first, like, segment, lanes)
                empty = first == stop
                _invert_sums(a, scratch, flat)
                if a[MEAN_HEADS] != 0:
                    _finish_mean(a, scratch, row, empty, segment, segment_lanes, lanes, by_head)
                elif by_head:
                    _finish_row_by_head(a, scratch, row, empty, segment, lanes)
                else:
                    _finish_row(a, scratch, row, empty, floats, segment, lanes)

    return kernel


def _attend_gatv2(lanes, segment_lanes, by_head, quantized):
    def kernel(a):
        scratch = scratch_floats(_SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        floats = splat_f32(np.float32(0), lanes)
        segment = splat_f32(np.float32(0), segment_lanes)
        flat = splat_f32(np.float32(0), 16)
        rows, rowptr, chunk = a[ROWS], a[ROWPTR], _chunk(a)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            end = piece_start(rowptr, rows, a[PIECES], piece + 1)
            for row in range(begin, end):
                first, stop = source(rowptr, row), source(rowptr, row + 1)
                _start_row(a, scratch, flat)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    if by_head:
                        _gatv2_scores_by_head(a, scratch, row, edge, count, like, lanes)
                    else:
                        _gatv2_scores(a, scratch, row, edge, count, like, segment, lanes)
                    _mute_tail(a, scratch, count, flat)
                    _weigh_chunk(a, scratch, count, flat)
                    if by_head:
                        _add_chunk_by_head(a, scratch, edge, count, edge == first, like, lanes)
                    else:
                        _add_chunk(a, scratch, edge, count, edge == first, like, segment, lanes)
                empty = first == stop
                _invert_sums(a, scratch, flat)
                if a[MEAN_HEADS] != 0:
                    _finish_mean(a, scratch, row, empty, segment, segment_lanes, lanes, by_head)
                elif by_head:
                    _finish_row_by_head(a, scratch, row, empty, segment, lanes)
                else:
                    _finish_row(a, scratch, row, empty, floats, segment, lanes)

    return kernel


def _attend_dot(lanes, segment_lanes, by_head, quantized):
    def kernel(a):
        scratch = scratch_floats(_SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        floats = splat_f32(np.float32(0), lanes)
        segment = splat_f32(np.float32(0), segment_lanes)
        flat = splat_f32(np.float32(0), 16)
        rows, rowptr, chunk = a[ROWS], a[ROWPTR], _chunk(a)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            end = piece_start(rowptr, rows, a[PIECES], piece + 1)
            for row in range(begin, end):
                first, stop = source(rowptr, row), source(rowptr, row + 1)
                _start_row(a, scratch, flat)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    if by_head:
                        _dot_scores_by_head(a, scratch, row, edge, count, like, lanes)
                    else:
                        _dot_scores(a, scratch, row, edge, count, like, segment, lanes)
                    _scale_logits(a, scratch, count, flat)
                    _mute_tail(a, scratch, count, flat)
                    _weigh_chunk(a, scratch, count, flat)
                    if by_head:
                        _add_chunk_by_head(a, scratch, edge, count, edge == first, like, lanes)
                    else:
                        _add_chunk(a, scratch, edge, count, edge == first, like, segment, lanes)
                empty = first == stop
                _invert_sums(a, scratch, flat)
                if a[MEAN_HEADS] != 0:
                    _finish_mean(a, scratch, row, empty, segment, segment_lanes, lanes, by_head)
                elif by_head:
                    _finish_row_by_head(a, scratch, row, empty, segment, lanes)
                else:
                    _finish_row(a, scratch, row, empty, floats, segment, lanes)

    return kernel


_FLOATS = None, None  # rows that are not codes have neither scale nor zero point


def _layout(heads: int, channels: int) -> tuple[int, int, bool]:
    """(lanes of a block, lanes of a head in it, whether blocks lie within a head)."""
    if channels & (channels - 1) == 0:
        lanes = min(_MOST_LANES, 1 << ((heads * channels).bit_length() - 1))
        return lanes, min(lanes, channels), False
    lanes = next(lanes for lanes in (16, 8, 4, 2) if lanes <= channels)
    return lanes, lanes, True


def _row_stride(x: Tensor | None) -> int:
    """Bytes from a row to the next."""
    return 0 if x is None else x.stride(0) * x.element_size()


def _reject(
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    rows: dict[str, Tensor],
    others: dict[str, Tensor | None],
) -> str | None:
    heads, channels = value.shape[1:]
    if heads > MOST_HEADS or heads * channels > MOST_CHANNELS:
        return f"the kernel takes at most {MOST_HEADS} heads and {MOST_CHANNELS} channels"
    for name, x in rows.items():
        if not x[:1].is_contiguous():
            return f"rows of {name} are not contiguous"
    for name, operand in others.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    return reject_large(rowptr, src)


def _launch(
    make: Callable[..., Any],
    value: Tensor,
    value_qparams: tuple[Tensor | None, Tensor | None],
    key: Tensor | None,
    key_qparams: tuple[Tensor | None, Tensor | None],
    target: Tensor,
    rowptr: Tensor,
    src: Tensor,
    factor: float,
    mean_heads: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
    score: Tensor | None = None,
    att: Tensor | None = None,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
) -> Tensor:
    num_rows, (heads, channels) = rowptr.shape[0] - 1, value.shape[1:]
    width = channels if mean_heads else heads * channels
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((num_rows, width), dtype)
    if out.numel() == 0:
        return out if out_scale is None else pack_codes(out, out_bits)
    lanes, segment, by_head = _layout(heads, channels)
    padded = 1 << (heads - 1).bit_length()
    row_bytes = heads * channels * value.element_size()
    kernel = compiled(make, lanes, segment, by_head, value.dtype == torch.int8)
    factors = torch.tensor(factor, dtype=torch.float32, device="cpu")
    epilogue = epilogue_arguments(
        num_rows,
        width,
        out,
        None,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )
    args = [
        *epilogue,
        *(heads, padded, channels, mean_heads, address(rowptr), address(src)),
        *(address(value), _row_stride(value), *map(address, value_qparams)),
        *(address(key), _row_stride(key), *map(address, key_qparams)),
        *(address(target), _row_stride(target), address(factors)),
        *(address(score), _row_stride(score), address(att), address(edge), address(edge_index)),
        *(row_bytes, src.shape[0] - 1, max(1, min(16, _BYTES_AHEAD // row_bytes))),
    ]
    launch(kernel, count_pieces((src.shape[0] + num_rows) * heads * channels, num_rows), args)
    return out if out_scale is None else pack_codes(out, out_bits)


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
    return _reject(x, rowptr, src, rows, others)


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
    return _launch(
        _attend_gat,
        x,
        _FLOATS,
        None,
        _FLOATS,
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
    return _reject(x, rowptr, src, rows, others)


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
    return _launch(
        _attend_gat,
        x,
        (scale, zero_point),
        None,
        _FLOATS,
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


def reject_attend_gatv2(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    rows = {"x_src": x_src, "x_dst": x_dst}
    others = {"att": att, "bias": bias, "residual": residual}
    return _reject(x_src, rowptr, src, rows, others)


def attend_gatv2(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return _launch(
        _attend_gatv2,
        x_src,
        _FLOATS,
        x_src,
        _FLOATS,
        x_dst,
        rowptr,
        src,
        negative_slope,
        mean_heads,
        bias,
        residual,
        activation,
        att=att,
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
    others = {"att": att, "bias": bias, "residual": residual}
    return _reject(x_src, rowptr, src, rows, others)


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
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    return _launch(
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
    )


def reject_attend_dot(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    rows = {"query": query, "key": key, "value": value}
    others = {"edge": edge, "edge_index": edge_index, "bias": bias, "residual": residual}
    return _reject(key, rowptr, src, rows, others)


def attend_dot(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return _launch(
        _attend_dot,
        value,
        _FLOATS,
        key,
        _FLOATS,
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
    others = {"edge": edge, "edge_index": edge_index, "bias": bias, "residual": residual}
    return _reject(key, rowptr, src, rows, others)


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
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    return _launch(
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
    )
