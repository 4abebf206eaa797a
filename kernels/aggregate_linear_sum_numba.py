"""CPU code of `aggregate_linear_sum`: a block of rows at a time, from edges to results.

For each term, the rows of the block that have edges are reduced into a buffer, side by side, and
multiplied in tiles that add to the sums of the block; meanwhile the rows that are reduced next are
on their way into the cache.  Buffer and sums stay there, and nothing is computed for rows without
edges.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from gnnfx.kernels.aggregate_linear_sum_cpu import count_used, multiplies_first
from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_floats, reject_large
from gnnfx.kernels.csr_numba import source, source_ahead
from gnnfx.kernels.epilogue_numba import CHANNELS, FIRST_FREE, PIECES, ROWS, Epilogue, finish
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.tiles_numba import (
    LEAST_PANEL,
    OPERATIONS_SHIFT,
    TILE,
    multiply_tile_and_prefetch,
    reject_weights,
)
from gnnfx.kernels.vectors_numba import (
    LINE,
    load_f32,
    prefetch,
    read_i32,
    scratch_floats,
    splat_f32,
    store,
    take_piece,
    write_i32,
)

TERMS, MEAN, WIDTH, BLOCK, BUFFER, FIRST_TERM = range(FIRST_FREE, FIRST_FREE + 6)
X, ROWPTR, SRC, EDGES, WEIGHT, INPUTS = range(6)
_PLACES = 6  # of a term
_FLOATS = 2**16  # of a block: its sums and the reduced rows of one term
_MOST_AHEAD = 2**18  # bytes of rows asked for; with a block and a weight, less than a second cache
_LEAST_ROWS, _MOST_ROWS = 4 * TILE, 256
_SCRATCH, _TARGETS = _FLOATS + LINE // 4, _MOST_ROWS + TILE
# While some rows are read others are multiplied, so reads cost less than they do by themselves, and
# next to nothing of so few values that they stay in a cache.
_MULTIPLICATIONS_A_READ = 0.25
_FEW_VALUES = 2**20


@njit(forceinline=True)
def _tile(x, inputs, weight, width, sums, target, coming, lanes):
    """Add six rows of x times a panel of the weight to the sums of their target rows."""
    products, edge = multiply_tile_and_prefetch(x, inputs, weight, width, coming, lanes)
    y0, y1, y2, y3, y4, y5 = products
    _add(y0, sums, width, target, lanes)
    _add(y1, sums, width, target + 4, lanes)
    _add(y2, sums, width, target + 8, lanes)
    _add(y3, sums, width, target + 12, lanes)
    _add(y4, sums, width, target + 16, lanes)
    _add(y5, sums, width, target + 20, lanes)
    return edge


@njit(forceinline=True)
def _add(y, sums, width, target, lanes):
    place = sums + 4 * width * read_i32(target)
    store(place, load_f32(place, lanes) + y)


@njit(forceinline=True)
def _panel(a, term, used, buffer, sums, targets, channel, coming, lanes):
    inputs, width = a[term + INPUTS], a[WIDTH]
    weight, sums = a[term + WEIGHT] + 4 * channel, sums + 4 * channel
    table, row_bytes, src, edge, stop = coming
    for row in range(0, used, TILE):
        x, target = buffer + 4 * inputs * row, targets + 4 * row
        ahead = table, row_bytes, src, edge, stop
        edge = _tile(x, inputs, weight, width, sums, target, ahead, lanes)
    return table, row_bytes, src, edge, stop


@njit(forceinline=True)
def _multiply(a, term, used, buffer, sums, targets, coming):
    """Add the rows in the buffer, times the weight of a term, to the sums."""
    width, channel = a[WIDTH], 0
    while channel + 64 <= width:
        coming = _panel(a, term, used, buffer, sums, targets, channel, coming, 64)
        channel += 64
    if width & 32 != 0:
        coming = _panel(a, term, used, buffer, sums, targets, channel, coming, 32)
        channel += 32
    if width & 16 != 0:
        coming = _panel(a, term, used, buffer, sums, targets, channel, coming, 16)
        channel += 16
    if width & 8 != 0:
        _panel(a, term, used, buffer, sums, targets, channel, coming, 8)


@njit(forceinline=True)
def _rows_to_come(a, number, begin, end):
    """What `multiply_tile_and_prefetch` asks for: sources of the edges that are reduced next.

    They are those of the term behind `number` for the block of rows `begin` to `end`, or of the
    first for the block behind; rows of a term without a graph are read in order and need no asking.
    """
    number += 1
    if number >= a[TERMS]:
        number, begin, end = 0, end, min(end + a[BLOCK], a[ROWS])
    term = FIRST_TERM + _PLACES * number
    rowptr, first, stop = a[term + ROWPTR], 0, 0
    if rowptr != 0:
        first, stop = read_i32(rowptr + 4 * begin), read_i32(rowptr + 4 * end)
    row_bytes = 4 * a[term + INPUTS]
    stop = min(stop, first + _MOST_AHEAD // row_bytes)
    return a[term + X], row_bytes, a[term + SRC], first, stop


@njit(forceinline=True)
def _reduce(a, term, row, buffer, lanes, lane_bytes):
    """The sum or mean of a row's edges; the row itself where a term has no graph."""
    x, src, inputs = a[term + X], a[term + SRC], a[term + INPUTS]
    first, stop = row, row + 1
    if a[term + ROWPTR] != 0:
        pointer = a[term + ROWPTR] + 4 * row
        first, stop = read_i32(pointer), read_i32(pointer + 4)
    if first == stop:
        return False
    factor = np.float32(1)
    if a[MEAN] != 0:
        factor /= np.float32(stop - first)
    channel = 0
    while channel < inputs:
        channel = min(channel, inputs - lanes)
        column, total = x + 4 * channel, splat_f32(np.float32(0), lanes)
        if a[term + ROWPTR] == 0:
            total = load_f32(column + 4 * inputs * row, lanes)
        else:
            for edge in range(first, stop):
                ahead = source_ahead(src, edge, a[term + EDGES] - 1)
                prefetch(column + 4 * inputs * ahead, lane_bytes)
                total = total + load_f32(column + 4 * inputs * source(src, edge), lanes)
        store(buffer + 4 * channel, total * splat_f32(factor, lanes))
        channel += lanes
    return True


@njit(forceinline=True)
def _finish_row(a, row, sums, lanes):
    channel = 0
    while channel < a[CHANNELS]:
        channel = min(channel, a[CHANNELS] - lanes)
        finish(load_f32(sums + 4 * channel, lanes), a, row, channel)
        channel += lanes


def _blocks(in_lanes, out_lanes):
    in_bytes = 4 * in_lanes

    def kernel(a):
        sums, targets = scratch_floats(_SCRATCH), scratch_floats(_TARGETS)
        sums = (sums + LINE - 1) // LINE * LINE
        buffer = sums + 4 * a[BUFFER]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            blocks = -(-a[ROWS] // a[BLOCK])
            stop = min(a[BLOCK] * (blocks * (piece + 1) // a[PIECES]), a[ROWS])
            begin = a[BLOCK] * (blocks * piece // a[PIECES])
            while begin < stop:
                end = min(begin + a[BLOCK], a[ROWS])
                for place in range(0, (end - begin) * a[WIDTH], LEAST_PANEL):
                    store(sums + 4 * place, splat_f32(np.float32(0), LEAST_PANEL))
                for number in range(a[TERMS]):
                    term = FIRST_TERM + _PLACES * number
                    used = 0
                    for row in range(begin, end):
                        place = buffer + 4 * a[term + INPUTS] * used
                        if _reduce(a, term, row, place, in_lanes, in_bytes):
                            write_i32(targets + 4 * used, np.int32(row - begin))
                            used += 1
                    # What a last tile computes of no row goes into a row of its own.
                    for rest in range(used, used + TILE):
                        write_i32(targets + 4 * rest, np.int32(a[BLOCK]))
                    coming = _rows_to_come(a, number, begin, end)
                    _multiply(a, term, used, buffer, sums, targets, coming)
                for row in range(begin, end):
                    _finish_row(a, row, sums + 4 * (row - begin) * a[WIDTH], out_lanes)
                begin = end

    return kernel


def reject_blocks(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
) -> str | None:
    """Why `blocks` cannot take these arguments, or is not the fastest."""
    layers = list(weight) if own_weight is None else [*weight, own_weight]
    for layer in layers:
        if layer.shape[1] == 0:
            return "there are no channels to sum"
        if (wrong := reject_weights(layer.numel())) is not None:
            return wrong
    if _block_rows(layers) < _LEAST_ROWS:
        return "rows are so wide that a block of them does not stay in the nearest caches"
    for v, r, s, w in zip(x, rowptr, src, weight, strict=True):
        if (wrong := reject_floats(x=v) or reject_large(r, s)) is not None:
            return wrong
        if _multiplies_first(v, r, s, w):
            return "there is less to do if a term is multiplied before it is reduced"
    return reject_floats(own=own, bias=bias, residual=residual)


def _multiplies_first(x: Tensor, rowptr: Tensor, src: Tensor, weight: Tensor) -> bool:
    saves = weight.shape[0] < weight.shape[1] or len(x) < rowptr.shape[0] - 1
    if x.numel() < _FEW_VALUES or not saves:
        return False
    more_rows = len(x) - count_used(rowptr, src, weight)
    return multiplies_first(more_rows, len(src), weight, _MULTIPLICATIONS_A_READ)


def blocks(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
) -> Tensor:
    """All terms for one block of rows after the other."""
    out = empty((rowptr[0].shape[0] - 1, weight[0].shape[0]))
    if out.numel() == 0:
        return out
    terms = [(v, address(r), address(s), len(s)) for v, r, s in zip(x, rowptr, src, strict=True)]
    layers = list(weight)
    if own is not None and own_weight is not None:
        terms.append((own, 0, 0, 0))
        layers.append(own_weight)
    # Neighbouring lanes hold neighbouring outputs, the terms' weights lie below each other.
    outputs, width = out.shape[1], _width(layers)
    below = functional.pad(torch.cat([layer.t() for layer in layers]), (0, width - outputs))
    rows = _block_rows(layers)
    args = Epilogue(None, bias, residual, activation).arguments(out)
    args += [len(terms), reduce == "mean", width, rows, (rows + 1) * width]
    at = address(below)
    for v, pointer, sources, edges in terms:
        args += [address(v), pointer, sources, edges, at, v.shape[1]]
        at += 4 * width * v.shape[1]
    lanes = choose_lanes(min(v.shape[1] for v, *_ in terms)), choose_lanes(outputs)
    read = sum(s.shape[0] * v.shape[1] for v, s in zip(x, src, strict=True))
    work = read + (len(out) * sum(layer.numel() for layer in layers) >> OPERATIONS_SHIFT)
    launch(compiled(_blocks, *lanes), count_pieces(work, -(-len(out) // rows)), args)
    return out


def _width(layers: Sequence[Tensor]) -> int:
    """Outputs, rounded up to whole panels."""
    return -(-layers[0].shape[0] // LEAST_PANEL) * LEAST_PANEL


def _block_rows(layers: Sequence[Tensor]) -> int:
    """As many rows as there is room for, with one more of sums and a tile more of inputs."""
    width, inputs = _width(layers), max(layer.shape[1] for layer in layers)
    return min(_MOST_ROWS, (_FLOATS - width - TILE * inputs) // (width + inputs))
