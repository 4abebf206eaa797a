"""CPU code of `gnnfx.kernels.csr_linear`: 64 rows of x at a time, one in each lane.

A tile of x is transposed first, so that every weight that is there costs one load and one
multiply-add for all 64 rows.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    load_f32,
    read_f32,
    read_i32,
    splat_f32,
    store,
    take_piece,
    write_f32,
)

PIECES, ROWS, INPUTS, OUTPUTS, X, ROWPTR, COLUMNS, VALUES, BIAS, OUT, SCRATCH = range(1, 12)
_TILE = 64
_PIECES_A_THREAD = 4  # each piece has scratch memory of its own


def _csr_linear(tile):
    def kernel(a):
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            inputs, outputs = a[INPUTS], a[OUTPUTS]
            x_t = a[SCRATCH] + 4 * piece * tile * (inputs + outputs)  # [inputs, tile]
            out_t = x_t + 4 * tile * inputs  # [outputs, tile]
            row, stop = a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]
            while row < stop:
                size = min(tile, stop - row)
                for lane in range(size):
                    x = a[X] + 4 * (row + lane) * inputs
                    for k in range(inputs):
                        write_f32(x_t + 4 * (k * tile + lane), read_f32(x + 4 * k))
                for o in range(outputs):
                    total = splat_f32(0.0, tile)
                    if a[BIAS] != 0:
                        total = splat_f32(read_f32(a[BIAS] + 4 * o), tile)
                    first = read_i32(a[ROWPTR] + 4 * o)
                    for place in range(first, read_i32(a[ROWPTR] + 4 * o + 4)):
                        weight = splat_f32(read_f32(a[VALUES] + 4 * place), tile)
                        column = read_i32(a[COLUMNS] + 4 * place)
                        total = total + weight * load_f32(x_t + 4 * tile * column, tile)
                    store(out_t + 4 * tile * o, total)
                for lane in range(size):
                    out = a[OUT] + 4 * (row + lane) * outputs
                    for o in range(outputs):
                        write_f32(out + 4 * o, read_f32(out_t + 4 * (o * tile + lane)))
                row += tile

    return kernel


def reject_csr_linear(
    x: Tensor, rowptr: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None = None
) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    for name, operand in (("x", x), ("values", values), ("bias", bias)):
        if operand is not None and (operand.dtype != torch.float32 or not operand.is_contiguous()):
            return f"{name} is not contiguous float32"
    for name, operand in (("rowptr", rowptr), ("columns", columns)):
        if operand.dtype != torch.int32 or not operand.is_contiguous():
            return f"{name} is not contiguous int32"
    return None


def csr_linear(
    x: Tensor, rowptr: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Rows [N, O]."""
    rows, inputs = x.shape
    outputs = rowptr.shape[0] - 1
    most = min(_PIECES_A_THREAD * torch.get_num_threads(), max(1, rows // _TILE))
    pieces = count_pieces(rows * (values.shape[0] + inputs + outputs), most)
    out = empty((rows, outputs))
    scratch = empty((pieces * _TILE * (inputs + outputs),))
    operands = [address(t) for t in (x, rowptr, columns, values, bias, out, scratch)]
    launch(compiled(_csr_linear, _TILE), pieces, [rows, inputs, outputs, *operands])
    return out
