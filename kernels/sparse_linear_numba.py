"""CPU code of `gnnfx.kernels.sparse_linear`: skip zeros 64 at a time.

A piece of rows that turns out to be dense stops the kernel, and the dense product takes over.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.memory import empty
from gnnfx.kernels.nonzeros_numba import BLOCK, block_mask, count_bits, lowest_bit
from gnnfx.kernels.sparse_linear import reference
from gnnfx.kernels.threads import address, launch
from gnnfx.kernels.vectors_numba import (
    load_f32,
    read_f32,
    read_i32,
    scratch_floats,
    splat_f32,
    store,
    take_piece,
    write_i32,
)

PIECES, ROWS, INPUTS, OUTPUTS, X, WEIGHT, BIAS, OUT, DENSE = range(1, 10)
CAPACITY = 1024  # positions of values that are not zero, at a time
ROWS_A_PIECE = 64
# Above a density of 1 / 8 a vectorized dense product is faster than picking out values.
_LEAST_ZEROS = 8


@njit(forceinline=True)
def is_dense(found, rows, inputs):
    """Whether `found` values in the first `rows` of a piece are too many to be picked out."""
    return found * _LEAST_ZEROS > (rows + 2) * inputs


@njit(forceinline=True)
def list_places(places, count, mask, start):
    """Append the positions of the bits of `mask`, from `start` on, to a list of `count`.

    Two are written without asking how many there are: a branch on that is seldom predicted.
    """
    at = places + 4 * count
    write_i32(at, start + lowest_bit(mask))
    rest = mask & (mask - 1)
    write_i32(at + 4, start + lowest_bit(rest))
    rest &= rest - 1
    while rest != 0:
        at += 4
        write_i32(at + 4, start + lowest_bit(rest))
        rest &= rest - 1
    return count + count_bits(mask)


@njit(forceinline=True)
def _add_products(a, x, out, places, count, lanes):
    """Add to a row of the result the products of the `count` values of x at `places`."""
    for place in range(0, 4 * a[OUTPUTS], 4 * lanes):
        total = load_f32(out + place, lanes)
        for i in range(count):
            k = read_i32(places + 4 * i)
            weight = a[WEIGHT] + 4 * k * a[OUTPUTS] + place
            total = total + splat_f32(read_f32(x + 4 * k), lanes) * load_f32(weight, lanes)
        store(out + place, total)


def _sparse_linear(lanes):
    def kernel(a):
        places = scratch_floats(CAPACITY)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            found = 0
            first, stop = a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]
            for row in range(first, stop):
                x, out = a[X] + 4 * row * a[INPUTS], a[OUT] + 4 * row * a[OUTPUTS]
                for place in range(0, 4 * a[OUTPUTS], 4 * lanes):
                    if a[BIAS] != 0:
                        store(out + place, load_f32(a[BIAS] + place, lanes))
                    else:
                        store(out + place, splat_f32(0.0, lanes))
                count, start = 0, 0
                while start < a[INPUTS]:
                    mask = block_mask(x, start, a[INPUTS])
                    count = list_places(places, count, mask, start)
                    start += BLOCK
                    if count > CAPACITY - BLOCK - 2:
                        found += count
                        _add_products(a, x, out, places, count, lanes)
                        count = 0
                found += count
                _add_products(a, x, out, places, count, lanes)
                if is_dense(found, row + 1 - first, a[INPUTS]):
                    write_i32(a[DENSE], 1)
                    return

    return kernel


def lanes_of(outputs: int) -> int:
    """The widest block that divides the outputs."""
    return next(lanes for lanes in (64, 16, 4, 1) if outputs % lanes == 0)


def reject_sparse_linear(x: Tensor, weight_t: Tensor, bias: Tensor | None = None) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    for name, operand in (("x", x), ("weight_t", weight_t), ("bias", bias)):
        if operand is not None and (operand.dtype != torch.float32 or not operand.is_contiguous()):
            return f"{name} is not contiguous float32"
    return None


def sparse_linear(x: Tensor, weight_t: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows [N, O]; a dense input is handed to the dense product."""
    rows, inputs = x.shape
    outputs = weight_t.shape[1]
    out = empty((rows, outputs))
    dense = torch.zeros(1, dtype=torch.int32)
    operands = [address(t) for t in (x, weight_t, bias, out, dense)]
    pieces = max(1, rows // ROWS_A_PIECE)
    launch(compiled(_sparse_linear, lanes_of(outputs)), pieces, [rows, inputs, outputs, *operands])
    return reference(x, weight_t, bias) if dense.item() else out
