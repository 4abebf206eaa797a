"""CPU code of `aggregate_transposed` and `edge_products`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import reject_floats, reject_large
from gnnfx.kernels.csr_numba import piece_start, source, source_ahead
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    add_lanes,
    load_f32,
    prefetch,
    read_f32,
    read_i32,
    splat_f32,
    store,
    take_piece,
    write_f32,
)

PIECES, ROWS, EDGES, WIDTH, HEADS, GRAD, ROWPTR, SRC, OTHER, OUT, SOURCES = range(1, 12)
_LANES = (64, 32, 16, 8, 4, 2, 1)


def _add_to_sources(lanes, weighted):
    """A piece is a range of sources, and passes over all edges to find those out of it.

    So no two threads add to one place.  `weighted` takes a factor for each edge and head.
    """
    block = 4 * lanes

    def kernel(a):
        width, heads, rowptr, src, weight = a[WIDTH], a[HEADS], a[ROWPTR], a[SRC], a[OTHER]
        channels, row_bytes, last_edge = width // heads, 4 * width, a[EDGES] - 1
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = a[SOURCES] * piece // a[PIECES]
            end = a[SOURCES] * (piece + 1) // a[PIECES]
            for row in range(a[ROWS]):
                here = a[GRAD] + row_bytes * row
                for edge in range(read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)):
                    place = source(src, edge)
                    if place < begin or place >= end:
                        continue
                    prefetch(a[OUT] + row_bytes * source_ahead(src, edge, last_edge), block)
                    there = a[OUT] + row_bytes * place
                    for head in range(heads):
                        if weighted:
                            factor = splat_f32(read_f32(weight + 4 * (edge * heads + head)), lanes)
                        for channel in range(head * channels, (head + 1) * channels, lanes):
                            value = load_f32(here + 4 * channel, lanes)
                            if weighted:
                                value = value * factor
                            store(there + 4 * channel, load_f32(there + 4 * channel, lanes) + value)

    return kernel


def _multiply(lanes):
    """The product of the rows at both ends of an edge, for each head; `lanes` divides its size."""

    def kernel(a):
        rows, width, heads, rowptr, src = a[ROWS], a[WIDTH], a[HEADS], a[ROWPTR], a[SRC]
        channels, row_bytes, last_edge = width // heads, 4 * width, a[EDGES] - 1
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                here = a[GRAD] + row_bytes * row
                for edge in range(read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)):
                    prefetch(a[OTHER] + row_bytes * source_ahead(src, edge, last_edge), 64)
                    there = a[OTHER] + row_bytes * source(src, edge)
                    for head in range(heads):
                        total = splat_f32(np.float32(0), lanes)
                        for channel in range(head * channels, (head + 1) * channels, lanes):
                            own = load_f32(here + 4 * channel, lanes)
                            total = total + own * load_f32(there + 4 * channel, lanes)
                        write_f32(a[OUT] + 4 * (edge * heads + head), add_lanes(total))

    return kernel


def reject_aggregate_transposed(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> str | None:
    return reject_floats(grad=grad, weight=weight) or reject_large(rowptr, src)


def aggregate_transposed(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> Tensor:
    out = empty((num_src, *grad.shape[1:])).zero_()
    if out.numel() == 0:
        return out
    num_rows, edges, width = rowptr.shape[0] - 1, src.shape[0], grad.shape[1:].numel()
    heads = weight.shape[1] if weight is not None and weight.dim() == 2 else 1
    args = [num_rows, edges, width, heads, *map(address, (grad, rowptr, src, weight, out)), num_src]
    pieces = min(torch.get_num_threads(), count_pieces(edges * width, num_src))
    launch(compiled(_add_to_sources, _divisor(width // heads), weight is not None), pieces, args)
    return out


def reject_edge_products(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> str | None:
    return reject_floats(grad=grad, x=x) or reject_large(rowptr, src)


def edge_products(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> Tensor:
    num_rows, edges, width = rowptr.shape[0] - 1, src.shape[0], grad.shape[1:].numel()
    heads = grad.shape[1] if per_head else 1
    out = empty((edges, heads) if per_head else (edges,))
    if out.numel():
        args = [num_rows, edges, width, heads, *map(address, (grad, rowptr, src, x, out))]
        pieces = count_pieces(edges * width, num_rows)
        launch(compiled(_multiply, _divisor(width // heads)), pieces, args)
    return out


def _divisor(channels: int) -> int:
    return next(lanes for lanes in _LANES if channels % lanes == 0)
