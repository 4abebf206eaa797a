"""CPU code of `dense_to_csr`: one sweep finds the values and counts them, one writes them.

The second reads a bit for each value of the matrix, and then only what it writes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import reject_floats
from gnnfx.kernels.memory import empty
from gnnfx.kernels.nonzeros_numba import BLOCK, block_mask, count_bits, lowest_bit
from gnnfx.kernels.threads import address, launch
from gnnfx.kernels.vectors_numba import (
    read_f32,
    read_i32,
    read_i64,
    take_piece,
    write_f32,
    write_i32,
    write_i64,
)

PIECES, ROWS, INPUTS, BLOCKS, X, MASKS, ROWPTR, COLUMNS, VALUES = range(1, 10)
_ROWS_A_PIECE = 64


def _find():
    """MASKS [N, BLOCKS] of the values that are not zero, and how many a row has behind ROWPTR."""

    def kernel(a):
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            for row in range(a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]):
                found = 0
                for block in range(a[BLOCKS]):
                    mask = block_mask(a[X] + 4 * row * a[INPUTS], block * BLOCK, a[INPUTS])
                    write_i64(a[MASKS] + 8 * (row * a[BLOCKS] + block), mask)
                    found += count_bits(mask)
                write_i32(a[ROWPTR] + 4 * (row + 1), found)

    return kernel


def _write():
    def kernel(a):
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            for row in range(a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]):
                x, place = a[X] + 4 * row * a[INPUTS], 4 * read_i32(a[ROWPTR] + 4 * row)
                for block in range(a[BLOCKS]):
                    mask = read_i64(a[MASKS] + 8 * (row * a[BLOCKS] + block))
                    while mask != 0:
                        column = block * BLOCK + lowest_bit(mask)
                        write_i32(a[COLUMNS] + place, column)
                        write_f32(a[VALUES] + place, read_f32(x + 4 * column))
                        mask &= mask - 1
                        place += 4

    return kernel


def reject_dense_to_csr(x: Tensor) -> str | None:
    """Why the kernel cannot take this argument, or None."""
    if x.numel() >= 2**31:
        return "x may have more values than int32 counts"
    return reject_floats(x=x)


def dense_to_csr(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, inputs = x.shape
    blocks, pieces = -(-inputs // BLOCK), max(1, rows // _ROWS_A_PIECE)
    rowptr = torch.zeros(rows + 1, dtype=torch.int32)
    masks = empty((rows, blocks), torch.int64)
    args = [rows, inputs, blocks, *map(address, (x, masks, rowptr))]
    launch(compiled(_find), pieces, args)
    torch.cumsum(rowptr, 0, dtype=torch.int32, out=rowptr)
    found = int(rowptr[-1])
    columns, values = empty((found,), torch.int32), empty((found,))
    launch(compiled(_write), pieces, [*args, address(columns), address(values)])
    return rowptr, columns, values
