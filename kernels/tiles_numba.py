"""A tile of a float32 product: six rows times a panel of a weight, in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from numba import njit

from gnnfx.kernels.csr_numba import source
from gnnfx.kernels.vectors_numba import (
    LINE,
    load_f32,
    multiply_add,
    prefetch_far,
    read_f32,
    splat_f32,
)

TILE = 6  # rows: with 64 lanes, 24 sums and 4 vectors of the weight fill 32 registers
LEAST_PANEL = 8  # outputs of a tile: 64, 32, 16 or 8
MOST_WEIGHTS = 2**16
OPERATIONS_SHIFT = 3  # multiply-adds to operations that the thread pool counts


def reject_weights(values: int) -> str | None:
    """Why tiles are not the fastest for a weight of so many values, or None."""
    if not torch.cpu._is_avx512_supported():
        return "the registers of this CPU do not hold a tile"
    if values > MOST_WEIGHTS:
        return f"{values} weights do not stay in the nearest caches"
    return None


@njit(forceinline=True)
def _add_products(sums, x, step, weight, lanes):
    """Add a value of each of six rows times a row of the panel."""
    y0, y1, y2, y3, y4, y5 = sums
    w = load_f32(weight, lanes)
    y0 = multiply_add(splat_f32(read_f32(x), lanes), w, y0)
    y1 = multiply_add(splat_f32(read_f32(x + step), lanes), w, y1)
    y2 = multiply_add(splat_f32(read_f32(x + 2 * step), lanes), w, y2)
    y3 = multiply_add(splat_f32(read_f32(x + 3 * step), lanes), w, y3)
    y4 = multiply_add(splat_f32(read_f32(x + 4 * step), lanes), w, y4)
    y5 = multiply_add(splat_f32(read_f32(x + 5 * step), lanes), w, y5)
    return y0, y1, y2, y3, y4, y5


@njit(forceinline=True)
def multiply_tile(x, inputs, weight, width, lanes):
    """Six rows of x, one below the other, times a panel of a weight with rows of `width`."""
    zero, step = splat_f32(0.0, lanes), 4 * inputs
    sums = zero, zero, zero, zero, zero, zero
    for _ in range(inputs):
        sums = _add_products(sums, x, step, weight, lanes)
        x += 4
        weight += 4 * width
    return sums


@njit(forceinline=True)
def multiply_tile_and_prefetch(x, inputs, weight, width, coming, lanes):
    """As `multiply_tile`, asking for a line of the rows to come between any two products.

    coming: table, bytes of its rows, their order, the first place in it and that behind the last.
    Returns the sums and the first place that has not been asked for.
    """
    zero, step = splat_f32(0.0, lanes), 4 * inputs
    sums = zero, zero, zero, zero, zero, zero
    table, row_bytes, src, edge, stop = coming
    left, lines = inputs, -(-row_bytes // LINE)
    while edge < stop and left >= lines:
        row = table + row_bytes * source(src, edge)
        for _ in range(lines):
            prefetch_far(row)
            sums = _add_products(sums, x, step, weight, lanes)
            x += 4
            weight += 4 * width
            row += LINE
        left -= lines
        edge += 1
    for _ in range(left):
        sums = _add_products(sums, x, step, weight, lanes)
        x += 4
        weight += 4 * width
    return sums, edge
