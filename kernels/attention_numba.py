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
from gnnfx.kernels.csr_numba import source
from gnnfx.kernels.epilogue_numba import (
    FIRST_FREE,
    epilogue_arguments,
    finish,
)
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize_numba import pack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    exp,
    greater,
    load_f32_like,
    load_floats,
    merge_lanes,
    multiply_add,
    prefetch,
    prefetch_floats,
    read_f32,
    read_i32,
    rotate,
    splat_f32_like,
    spread,
    store,
)

# VALUE are the rows that are summed, KEY those that are scored (0 for GAT, which has SCORE);
# TARGET are the destination's rows: scores, features or queries.  Strides are in bytes.  EDGE is
# added to values and keys (or to GAT's scores, in the order of SRC), KEY_EDGE to keys alone.
HEADS, PADDED, HEAD_CHANNELS, MEAN_HEADS, ROWPTR, SRC = range(FIRST_FREE, FIRST_FREE + 6)
VALUE, VALUE_STRIDE, VALUE_SCALE, VALUE_ZERO_POINT = range(FIRST_FREE + 6, FIRST_FREE + 10)
KEY, KEY_STRIDE, KEY_SCALE, KEY_ZERO_POINT = range(FIRST_FREE + 10, FIRST_FREE + 14)
TARGET, TARGET_STRIDE, FACTOR = range(FIRST_FREE + 14, FIRST_FREE + 17)
SCORE, SCORE_STRIDE, ATT, EDGE, EDGE_INDEX = range(FIRST_FREE + 17, FIRST_FREE + 22)
KEY_EDGE, KEY_EDGE_INDEX = range(FIRST_FREE + 22, FIRST_FREE + 24)
ROW_BYTES, LAST_EDGE, AHEAD = range(FIRST_FREE + 24, FIRST_FREE + 27)
# With features of edges, EDGE or KEY_EDGE are these, and rows are made of them for some edges.
FEATURES, EDGE_WEIGHT, EDGE_BIAS = range(FIRST_FREE + 27, FIRST_FREE + 30)

FLOATS = None, None  # rows that are not codes have neither scale nor zero point

MOST_HEADS = 256
MOST_CHANNELS = 4096  # of all heads together
_MOST_LANES = 128
_CHUNK_VALUES = 1024  # logits at a time; at least four edges of them
_CHUNK_EDGES = 32
SCORES_AHEAD = 48  # edges between asking for scores and reading them
_BYTES_AHEAD = 4096  # of rows asked for and not read yet, of 16 edges at most
# Scratch memory: logits; for each head its maximum, sum, rescaling and target score; sums by block.
_HIGHEST, _SUM, _RESCALE, TARGET_SCORE = (4 * (_CHUNK_VALUES + i * MOST_HEADS) for i in range(4))
_ROW = 4 * (_CHUNK_VALUES + 4 * MOST_HEADS)
_MADE = _ROW + 4 * (2 * MOST_CHANNELS + 64)  # rows of edges
_MADE_VALUES = 2 * MOST_CHANNELS
SCRATCH = _CHUNK_VALUES + 4 * MOST_HEADS + 2 * MOST_CHANNELS + 64 + _MADE_VALUES + 64


@njit(forceinline=True)
def logit_groups(a, count):
    """(groups of 16 logits, floats between them, such columns) of the logits of some edges."""
    padded = a[PADDED]
    if padded <= 16:
        return (count * padded + 15) // 16, 16, 1
    return count, padded, padded // 16


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
            out = scratch + _MADE + 4 * start
            store(out + 4 * width * i, t0)
            store(out + 4 * width * i1, t1)
            store(out + 4 * width * i2, t2)
            store(out + 4 * width * i3, t3)
    return scratch + _MADE, np.int64(0), np.int64(0)


@njit(forceinline=True)
def edge_place(index, edge):
    """Where the row of an edge stands among the rows of edges."""
    return source(index, edge) if index != 0 else edge


@njit(forceinline=True)
def mute_tail(a, scratch, count, flat):
    """Let the places behind the last edge weigh nothing."""
    groups, stride, _ = logit_groups(a, count)
    if a[PADDED] < 16:
        place = scratch + 4 * (groups - 1) * stride
        nothing = splat_f32_like(np.float32(-np.inf), flat)
        live = count * a[PADDED] - 16 * (groups - 1)
        store(place, merge_lanes(load_f32_like(place, flat), nothing, live))


@njit(forceinline=True)
def read_qparams(scale, zero_point):
    """Scale and zero point at two addresses: 1 and 0 for floats, which have none."""
    if scale == 0:
        return np.float32(1), np.int32(0)
    return read_f32(scale), read_i32(zero_point)


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
def weigh_chunk(a, scratch, count, is_first, flat):
    """Turn logits into exp(logit - maximum so far), and update maximum, sum and rescaling."""
    groups, stride, columns = logit_groups(a, count)
    padded = a[PADDED]
    for column in range(columns):
        place = scratch + 64 * column
        highest = load_f32_like(place, flat)
        for i in range(1, groups):
            highest = greater(highest, load_f32_like(place + 4 * i * stride, flat))
        highest = _fold_greatest(highest, padded)
        total = splat_f32_like(np.float32(0), flat)
        if not is_first:
            before = load_f32_like(place + _HIGHEST, flat)
            highest = greater(before, highest)
            rescale = exp(before - highest)
            store(place + _RESCALE, rescale)
            total = load_f32_like(place + _SUM, flat) * rescale
        for i in range(groups):
            weight = exp(load_f32_like(place + 4 * i * stride, flat) - highest)
            store(place + 4 * i * stride, weight)
            total = total + weight
        store(place + _HIGHEST, highest)
        store(place + _SUM, total)


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
        out, rescale = scratch + _ROW + 4 * block * lanes, scratch + _RESCALE
        _store_sum(out, rescale + 4 * h0, t0, is_first, like)
        _store_sum(out + 4 * lanes, rescale + 4 * h1, t1, is_first, like)
        _store_sum(out + 8 * lanes, rescale + 4 * h2, t2, is_first, like)
        _store_sum(out + 12 * lanes, rescale + 4 * h3, t3, is_first, like)


@njit(forceinline=True)
def invert_sums(a, scratch, flat):
    """Turn the sums of weights into what sums of rows are multiplied with."""
    scale = np.float32(1)
    if a[EDGE_INDEX] == 0:
        scale = read_qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])[0]
    for column in range(0, max(a[PADDED], 16), 16):
        place = scratch + _SUM + 4 * column
        total = _fold_sum(load_f32_like(place, flat), a[PADDED])
        total = total + splat_f32_like(np.float32(1e-16), flat)
        store(place, splat_f32_like(scale, flat) / total)


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
            factor = spread(scratch + _SUM + 4 * head_of(start, channels), segment, like)
            total = multiply_add(load_f32_like(scratch + _ROW + 4 * block, like), factor, offset)
        finish(total, a, row, start)


@njit(forceinline=True)
def finish_row_by_head(a, scratch, row, is_empty, like, lanes):
    """Write the row whose sums are complete, for blocks within heads."""
    channels, place = a[HEAD_CHANNELS], scratch + _ROW
    offset = splat_f32_like(_value_offset(a), like)
    for head in range(a[HEADS]):
        factor = splat_f32_like(read_f32(scratch + _SUM + 4 * head), like)
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
            rows = load_f32_like(scratch + _ROW + 4 * place, segment)
            factor = splat_f32_like(read_f32(scratch + _SUM + 4 * head), segment)
            total = multiply_add(rows, factor, total)
        total = total / splat_f32_like(np.float32(heads), segment)
        if not is_empty:
            total = total + splat_f32_like(_value_offset(a), segment)
        finish(total, a, row, min(channel, channels - segment_lanes))


@njit(forceinline=True)
def edges_at_a_time(a):
    """Edges at a time."""
    most = min(_CHUNK_EDGES, _CHUNK_VALUES // max(a[PADDED], 16))
    if a[EDGE_WEIGHT] != 0:
        most = min(most, _MADE_VALUES // (a[HEADS] * a[HEAD_CHANNELS]))
    return most


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


def reject_attention(
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


def launch_attention(
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
    key_edge: Tensor | None = None,
    key_edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
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
    features = 0 if edge_weight is None else edge_weight.shape[1]
    by_feature = None if edge_weight is None else edge_weight.t().contiguous()
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
        *(address(key_edge), address(key_edge_index)),
        *(row_bytes, src.shape[0] - 1, max(1, min(16, _BYTES_AHEAD // row_bytes))),
        *(features, address(by_feature), address(edge_bias)),
    ]
    launch(kernel, count_pieces((src.shape[0] + num_rows) * heads * channels, num_rows), args)
    return out if out_scale is None else pack_codes(out, out_bits)
