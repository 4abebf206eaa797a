"""Rows in Numba code of `gnnfx.kernels.attention`: asked for, made of edges, summed and finished.

Channels are taken in blocks of LANES.  Where a head has a power of two of channels, a block spans
several heads, so that a row of 128 channels is one block in registers; else blocks lie within a
head, the last one over the one before it, and four of them are summed side by side.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from gnnfx.kernels.attention_numba import (
    AHEAD,
    EDGE_BIAS,
    EDGE_INDEX,
    EDGE_WEIGHT,
    FEATURES,
    HEAD_CHANNELS,
    HEADS,
    KEY,
    KEY_STRIDE,
    LAST_EDGE,
    MADE,
    PADDED,
    RESCALE,
    ROW,
    ROW_BYTES,
    SCORES_AHEAD,
    SRC,
    SUM,
    VALUE,
    VALUE_SCALE,
    VALUE_STRIDE,
    VALUE_ZERO_POINT,
    read_qparams,
)
from gnnfx.kernels.csr_numba import source
from gnnfx.kernels.epilogue_numba import finish
from gnnfx.kernels.vectors_numba import (
    load_f32_like,
    load_floats,
    multiply_add,
    prefetch,
    prefetch_floats,
    read_f32,
    splat_f32_like,
    spread,
    store,
)


@njit(forceinline=True)
def _prefetch_row(a, rows, stride, edge):
    """Start loading the row that an edge reads, or the last edge if there is no such edge."""
    start = rows + source(a[SRC], min(edge, a[LAST_EDGE])) * stride
    for line in range(0, a[ROW_BYTES], 64):
        prefetch(start + line, 1)


@njit(forceinline=True)
def prefetch_pair(a, edge):
    """Start loading the key that will be scored soon, and the value that is read after that."""
    _prefetch_row(a, a[KEY], a[KEY_STRIDE], edge + a[AHEAD])
    if a[VALUE] != a[KEY]:
        _prefetch_row(a, a[VALUE], a[VALUE_STRIDE], edge)


@njit(forceinline=True)
def prefetch_blocks(a, edge, start, like):
    """The same for one block of them: requests spread over the work stall it less."""
    ahead = source(a[SRC], min(edge + a[AHEAD], a[LAST_EDGE]))
    prefetch_floats(a[KEY] + ahead * a[KEY_STRIDE], start, like)
    if a[VALUE] != a[KEY]:
        prefetch_floats(a[VALUE] + source(a[SRC], edge) * a[VALUE_STRIDE], start, like)


@njit(forceinline=True)
def make_edges(a, scratch, given, first, count, floats, lanes):
    """Rows of some edges from their features: (where rows lie, their order, the first of them).

    Without features, what is given: rows of all edges.  Four edges at a time read the weight once.
    """
    edges, index = given
    if a[EDGE_WEIGHT] == 0:
        return edges, index, first
    width, features, last = a[HEADS] * a[HEAD_CHANNELS], a[FEATURES], count - 1
    for i in range(0, count, 4):
        i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
        for soon in range(first + i + SCORES_AHEAD, first + i + SCORES_AHEAD + 4):
            prefetch(edges + 4 * features * source(index, min(soon, a[LAST_EDGE])), 1)
        f0 = edges + 4 * features * source(index, first + i)
        f1 = edges + 4 * features * source(index, first + i1)
        f2 = edges + 4 * features * source(index, first + i2)
        f3 = edges + 4 * features * source(index, first + i3)
        for block in range(0, width, lanes):
            start = min(block, width - lanes)
            t0 = splat_f32_like(np.float32(0), floats)
            if a[EDGE_BIAS] != 0:
                t0 = load_f32_like(a[EDGE_BIAS] + 4 * start, floats)
            t1, t2, t3 = t0, t0, t0
            weight = a[EDGE_WEIGHT] + 4 * start
            for place in range(0, 4 * features, 4):
                by = load_f32_like(weight + width * place, floats)
                t0 = multiply_add(splat_f32_like(read_f32(f0 + place), floats), by, t0)
                t1 = multiply_add(splat_f32_like(read_f32(f1 + place), floats), by, t1)
                t2 = multiply_add(splat_f32_like(read_f32(f2 + place), floats), by, t2)
                t3 = multiply_add(splat_f32_like(read_f32(f3 + place), floats), by, t3)
            out = scratch + MADE + 4 * start
            store(out + 4 * width * i, t0)
            store(out + 4 * width * i1, t1)
            store(out + 4 * width * i2, t2)
            store(out + 4 * width * i3, t3)
    return scratch + MADE, np.int64(0), np.int64(0)


@njit(forceinline=True)
def edge_place(index, edge):
    """Where the row of an edge stands among the rows of edges."""
    return source(index, edge) if index != 0 else edge


@njit(forceinline=True)
def head_of(start, channels):
    """The head of a channel of the row; most rows are one block, which spares the division."""
    return start // channels if start > 0 else np.int64(0)


@njit(forceinline=True)
def add_chunk(a, scratch, first, count, made, is_first, like, segment, lanes):
    """Add the weighted rows of some edges to the sums so far, a block of heads at a time.

    made: what `make_edges` found.
    """
    channels, padded, src, rows, stride = (
        a[HEAD_CHANNELS],
        a[PADDED],
        a[SRC],
        a[VALUE],
        a[VALUE_STRIDE],
    )
    width, (edges, index, first_edge) = a[HEADS] * channels, made
    alone = a[KEY] == 0
    scale, _ = read_qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])
    for block in range(0, width, lanes):
        start = min(block, width - lanes)
        weights = scratch + 4 * head_of(start, channels)
        total = splat_f32_like(np.float32(0), like)
        for i in range(count):
            if alone:
                ahead = source(src, min(first + i + a[AHEAD], a[LAST_EDGE]))
                prefetch_floats(rows + ahead * stride, start, like)
            value = load_floats(rows + source(src, first + i) * stride, start, like)
            if a[EDGE_INDEX] != 0:
                place = edge_place(index, first_edge + i) * width + start
                edge = load_f32_like(edges + 4 * place, like)
                value = multiply_add(value, splat_f32_like(scale, like), edge)
            total = multiply_add(value, spread(weights + 4 * i * padded, segment, like), total)
        out = scratch + ROW + 4 * block
        if not is_first:
            rescale = spread(weights + RESCALE, segment, like)
            total = multiply_add(load_f32_like(out, like), rescale, total)
        store(out, total)


@njit(forceinline=True)
def _next_block(a, head, channel, lanes):
    """The block behind one that starts at a channel of a head."""
    if channel + lanes < a[HEAD_CHANNELS]:
        return head, channel + lanes
    return min(head + 1, a[HEADS] - 1), np.int64(0)


@njit(forceinline=True)
def _weighted(base, start, edge, weight, total, scale, like):
    """`total` and one block of one row, weighted."""
    value = load_floats(base, start, like)
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
def add_chunk_by_head(a, scratch, first, count, made, is_first, like, lanes):
    """Add the weighted rows of some edges to the sums so far, four blocks of a head at a time."""
    heads, channels, padded, src = a[HEADS], a[HEAD_CHANNELS], a[PADDED], a[SRC]
    rows, stride, (edges, index, first_edge) = a[VALUE], a[VALUE_STRIDE], made
    alone = a[KEY] == 0
    blocks, most = heads * ((channels + lanes - 1) // lanes), channels - lanes
    scale, _ = read_qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])
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
            if a[EDGE_INDEX] != 0:
                edge = edges + 4 * edge_place(index, first_edge + i) * heads * channels
                e0, e1, e2, e3 = edge + 4 * p0, edge + 4 * p1, edge + 4 * p2, edge + 4 * p3
            t0 = _weighted(base, p0, e0, w + 4 * h0, t0, scale, like)
            t1 = _weighted(base, p1, e1, w + 4 * h1, t1, scale, like)
            t2 = _weighted(base, p2, e2, w + 4 * h2, t2, scale, like)
            t3 = _weighted(base, p3, e3, w + 4 * h3, t3, scale, like)
        out, rescale = scratch + ROW + 4 * block * lanes, scratch + RESCALE
        _store_sum(out, rescale + 4 * h0, t0, is_first, like)
        _store_sum(out + 4 * lanes, rescale + 4 * h1, t1, is_first, like)
        _store_sum(out + 8 * lanes, rescale + 4 * h2, t2, is_first, like)
        _store_sum(out + 12 * lanes, rescale + 4 * h3, t3, is_first, like)


@njit(forceinline=True)
def _value_offset(a):
    """What all values lie too high: sums are of codes, and the weights of a row add up to one."""
    scale, zero_point = read_qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])
    return -scale * np.float32(zero_point)


@njit(forceinline=True)
def finish_row(a, scratch, row, is_empty, like, segment, lanes):
    """Write the row whose sums are complete."""
    channels, width = a[HEAD_CHANNELS], a[HEADS] * a[HEAD_CHANNELS]
    offset = splat_f32_like(_value_offset(a), like)
    for block in range(0, width, lanes):
        start = min(block, width - lanes)
        total = splat_f32_like(np.float32(0), like)
        if not is_empty:
            factor = spread(scratch + SUM + 4 * head_of(start, channels), segment, like)
            total = multiply_add(load_f32_like(scratch + ROW + 4 * block, like), factor, offset)
        finish(total, a, row, start)


@njit(forceinline=True)
def finish_row_by_head(a, scratch, row, is_empty, like, lanes):
    """Write the row whose sums are complete, for blocks within heads."""
    channels, place = a[HEAD_CHANNELS], scratch + ROW
    offset = splat_f32_like(_value_offset(a), like)
    for head in range(a[HEADS]):
        factor = splat_f32_like(read_f32(scratch + SUM + 4 * head), like)
        for channel in range(0, channels, lanes):
            total = splat_f32_like(np.float32(0), like)
            if not is_empty:
                total = multiply_add(load_f32_like(place, like), factor, offset)
            finish(total, a, row, head * channels + min(channel, channels - lanes))
            place += 4 * lanes


@njit(forceinline=True)
def finish_mean(a, scratch, row, is_empty, segment, segment_lanes, lanes, by_head):
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
            rows = load_f32_like(scratch + ROW + 4 * place, segment)
            factor = splat_f32_like(read_f32(scratch + SUM + 4 * head), segment)
            total = multiply_add(rows, factor, total)
        total = total / splat_f32_like(np.float32(heads), segment)
        if not is_empty:
            total = total + splat_f32_like(_value_offset(a), segment)
        finish(total, a, row, min(channel, channels - segment_lanes))
