"""CPU code of `gnnfx.kernels.attention`: all heads of one destination, some of its edges at a time.

The logits of a few edges are computed, the running maximum and sum of each head are brought up to
date (sums so far are rescaled where the maximum grew), and the rows of these edges, still in the
cache, are added.  Nothing is as long as the edge list.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_large
from gnnfx.kernels.csr_numba import piece_start, source
from gnnfx.kernels.quantize_numba import dequantize
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    add_lanes,
    exp,
    greater,
    leaky_relu,
    load_f32_like,
    load_row,
    merge_lanes,
    prefetch,
    read_f32,
    read_i32,
    scratch_floats,
    splat_f32,
    splat_f32_like,
    splat_i8,
    store,
    take_piece,
    write_f32,
)

PIECES, ROWS, HEADS, CHANNELS, X, SCALE, ZERO_POINT, ROWPTR, SRC, SLOPE, OUT = range(1, 12)
A_SRC, A_DST, A_EDGE = 12, 13, 14
X_DST, ATT = 12, 13

MOST_HEADS = 256
_CHUNK_VALUES = 1024  # logits at a time; at least four edges of them
_CHUNK_EDGES = 32
# Scratch memory: logits, then for each head its maximum, sum and rescaling.
_HIGHEST, _SUM, _RESCALE = (4 * (_CHUNK_VALUES + i * MOST_HEADS) for i in range(3))
_SCRATCH = _CHUNK_VALUES + 3 * MOST_HEADS


@njit(forceinline=True)
def _start_row(scratch, heads):
    """No edges yet."""
    for head in range(heads):
        write_f32(scratch + _HIGHEST + 4 * head, np.float32(-np.inf))
        write_f32(scratch + _SUM + 4 * head, np.float32(0))


@njit(forceinline=True)
def _gat_logits(a, scratch, row, first, count, like, step):
    """Logits [count, heads]; `like` has `step` lanes."""
    heads, src = a[HEADS], a[SRC]
    slope = splat_f32_like(read_f32(a[SLOPE]), like)
    for head in range(0, heads, step):
        target = load_f32_like(a[A_DST] + 4 * (row * heads + head), like)
        for i in range(count):
            scores = load_f32_like(a[A_SRC] + 4 * (source(src, first + i) * heads + head), like)
            scores = scores + target
            if a[A_EDGE] != 0:
                scores = scores + load_f32_like(a[A_EDGE] + 4 * ((first + i) * heads + head), like)
            store(scratch + 4 * (i * heads + head), leaky_relu(scores, slope))


@njit(forceinline=True)
def _gatv2_logits(a, scratch, row, first, count, like, lanes):
    """Logits [count, heads]; `like` has the element type of the rows and `lanes` lanes."""
    heads, channels, src = a[HEADS], a[CHANNELS], a[SRC]
    width = heads * channels
    slope = splat_f32_like(read_f32(a[SLOPE]), like)
    scale, zero_point = _qparams(a, like)
    for i in range(count):
        start = source(src, first + i) * width
        for head in range(heads):
            total = splat_f32_like(np.float32(0), like)
            channel = 0
            while channel < channels:
                done = max(channel - (channels - lanes), 0)
                channel -= done
                place = head * channels + channel
                value = (load_row(a[X], start + place, like) - zero_point) * scale
                value = value + load_f32_like(a[X_DST] + 4 * (row * width + place), like)
                value = leaky_relu(value, slope) * load_f32_like(a[ATT] + 4 * place, like)
                if done > 0:
                    value = merge_lanes(splat_f32_like(np.float32(0), like), value, done)
                total = total + value
                channel += lanes
            write_f32(scratch + 4 * (i * heads + head), add_lanes(total))


@njit(forceinline=True)
def _qparams(a, like):
    """Scale and zero point of x in all lanes: 1 and 0 for floats."""
    scale, zero_point = np.float32(1), np.float32(0)
    if a[SCALE] != 0:
        scale, zero_point = read_f32(a[SCALE]), np.float32(read_i32(a[ZERO_POINT]))
    return splat_f32_like(scale, like), splat_f32_like(zero_point, like)


@njit(forceinline=True)
def _weigh_chunk(scratch, heads, count, like, step):
    """Turn logits into exp(logit - maximum so far), and update maximum, sum and rescaling."""
    for head in range(0, heads, step):
        place = scratch + 4 * head
        before = load_f32_like(place + _HIGHEST, like)
        highest = before
        for i in range(count):
            highest = greater(highest, load_f32_like(place + 4 * i * heads, like))
        rescale = exp(before - highest)
        total = load_f32_like(place + _SUM, like) * rescale
        for i in range(count):
            weight = exp(load_f32_like(place + 4 * i * heads, like) - highest)
            store(place + 4 * i * heads, weight)
            total = total + weight
        store(place + _HIGHEST, highest)
        store(place + _RESCALE, rescale)
        store(place + _SUM, total)


@njit(forceinline=True)
def _add_chunk(a, scratch, row, first, count, is_first, is_last, like, lanes):
    """Add the weighted rows to the output row, and divide it after the last of them."""
    heads, channels, src = a[HEADS], a[CHANNELS], a[SRC]
    width = heads * channels
    scale, zero_point = _qparams(a, like)
    for head in range(heads):
        rescale = splat_f32_like(read_f32(scratch + _RESCALE + 4 * head), like)
        weights = read_f32(scratch + _SUM + 4 * head) + np.float32(1e-16)
        channel = 0
        while channel < channels:
            done = max(channel - (channels - lanes), 0)
            channel -= done
            place = head * channels + channel
            out = a[OUT] + 4 * (row * width + place)
            total = splat_f32_like(np.float32(0), like)
            for i in range(count):
                value = load_row(a[X], source(src, first + i) * width + place, like) - zero_point
                factor = read_f32(scratch + 4 * (i * heads + head))
                total = total + value * splat_f32_like(factor, like)
            if not is_first:
                total = total + load_f32_like(out, like) * rescale
            if is_last:
                total = total / splat_f32_like(weights, like) * scale
            if not is_first and done > 0:
                total = merge_lanes(load_f32_like(out, like), total, done)
            store(out, total)
            channel += lanes


@njit(forceinline=True)
def _zero_row(out, count):
    """The result of a node without edges."""
    for i in range(count):
        write_f32(out + 4 * i, np.float32(0))


@njit(forceinline=True)
def _prefetch_rows(a, first, count, row_bytes):
    """Start loading the rows of a chunk while its logits are computed."""
    for i in range(count):
        start = a[X] + source(a[SRC], first + i) * row_bytes
        for line in range(0, row_bytes, 64):
            prefetch(start + line, 1)


def _attend_gat(lanes, head_lanes, quantized):
    size = 1 if quantized else 4

    def kernel(a):
        scratch = scratch_floats(_SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        heads_like = splat_f32(np.float32(0), head_lanes)
        rows, heads, width = a[ROWS], a[HEADS], a[HEADS] * a[CHANNELS]
        chunk = min(_CHUNK_EDGES, _CHUNK_VALUES // heads)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(a[ROWPTR], rows, a[PIECES], piece)
            for row in range(begin, piece_start(a[ROWPTR], rows, a[PIECES], piece + 1)):
                first, stop = read_i32(a[ROWPTR] + 4 * row), read_i32(a[ROWPTR] + 4 * row + 4)
                if first == stop:
                    _zero_row(a[OUT] + 4 * row * width, width)
                _start_row(scratch, heads)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    _prefetch_rows(a, edge, count, width * size)
                    _gat_logits(a, scratch, row, edge, count, heads_like, head_lanes)
                    _weigh_chunk(scratch, heads, count, heads_like, head_lanes)
                    is_first, is_last = edge == first, edge + count == stop
                    _add_chunk(a, scratch, row, edge, count, is_first, is_last, like, lanes)

    return kernel


def _attend_gatv2(lanes, head_lanes, quantized):
    size = 1 if quantized else 4

    def kernel(a):
        scratch = scratch_floats(_SCRATCH)
        like = splat_i8(0, lanes) if quantized else splat_f32(np.float32(0), lanes)
        heads_like = splat_f32(np.float32(0), head_lanes)
        rows, heads, width = a[ROWS], a[HEADS], a[HEADS] * a[CHANNELS]
        chunk = min(_CHUNK_EDGES, _CHUNK_VALUES // heads)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(a[ROWPTR], rows, a[PIECES], piece)
            for row in range(begin, piece_start(a[ROWPTR], rows, a[PIECES], piece + 1)):
                first, stop = read_i32(a[ROWPTR] + 4 * row), read_i32(a[ROWPTR] + 4 * row + 4)
                if first == stop:
                    _zero_row(a[OUT] + 4 * row * width, width)
                _start_row(scratch, heads)
                for edge in range(first, stop, chunk):
                    count = min(chunk, stop - edge)
                    _prefetch_rows(a, edge, count, width * size)
                    _gatv2_logits(a, scratch, row, edge, count, like, lanes)
                    _weigh_chunk(scratch, heads, count, heads_like, head_lanes)
                    is_first, is_last = edge == first, edge + count == stop
                    _add_chunk(a, scratch, row, edge, count, is_first, is_last, like, lanes)

    return kernel


def _reject(rowptr: Tensor, src: Tensor, heads: int, **operands: Tensor | None) -> str | None:
    if heads > MOST_HEADS:
        return f"the kernel keeps at most {MOST_HEADS} heads, got {heads}"
    for name, operand in operands.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    return reject_large(rowptr, src)


def _launch(make, x, scale, zero_point, rowptr, src, slope, *scores) -> Tensor:
    num_rows, (heads, channels) = rowptr.shape[0] - 1, x.shape[1:]
    out = torch.empty((num_rows, heads, channels), dtype=torch.float32, device="cpu")
    if out.numel() == 0:
        return out
    head_lanes = next(lanes for lanes in (8, 4, 2, 1) if heads % lanes == 0)
    kernel = compiled(make, choose_lanes(channels), head_lanes, x.dtype == torch.int8)
    slope = torch.tensor(slope, dtype=torch.float32, device="cpu")
    operands = map(address, (x, scale, zero_point, rowptr, src, slope, out, *scores))
    pieces = count_pieces((src.shape[0] + num_rows) * heads * channels, num_rows)
    launch(kernel, pieces, [num_rows, heads, channels, *operands])
    return out


def reject_attend_gat(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> str | None:
    return _reject(rowptr, src, x.shape[1], x=x, a_src=a_src, a_dst=a_dst, a_edge=a_edge)


def attend_gat(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    scores = a_src, a_dst, a_edge
    return _launch(_attend_gat, x, None, None, rowptr, src, negative_slope, *scores)


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
) -> str | None:
    return _reject(rowptr, src, x.shape[1], x=x, a_src=a_src, a_dst=a_dst, a_edge=a_edge)


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
) -> Tensor:
    scores = a_src, a_dst, a_edge
    return _launch(_attend_gat, x, scale, zero_point, rowptr, src, negative_slope, *scores)


def reject_attend_gatv2(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> str | None:
    return _reject(rowptr, src, x_src.shape[1], x_src=x_src, x_dst=x_dst, att=att)


def attend_gatv2(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    return _launch(_attend_gatv2, x_src, None, None, rowptr, src, negative_slope, x_dst, att)


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
) -> str | None:
    return _reject(rowptr, src, x_src.shape[1], x_src=x_src, x_dst=x_dst, att=att)


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
) -> Tensor:
    target = dequantize(x_dst, scale_dst, zero_point_dst, x_dst.shape[-1])
    qparams = scale_src, zero_point_src
    return _launch(_attend_gatv2, x_src, *qparams, rowptr, src, negative_slope, target, att)
