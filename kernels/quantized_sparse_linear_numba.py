"""CPU code of `gnnfx.kernels.quantized_sparse_linear`: only what is not zero is rounded."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import reject_floats
from gnnfx.kernels.epilogue_numba import to_codes
from gnnfx.kernels.memory import empty
from gnnfx.kernels.nonzeros_numba import BLOCK, block_mask
from gnnfx.kernels.quantize import code_range
from gnnfx.kernels.quantized_sparse_linear import dense as dense_product
from gnnfx.kernels.sparse_linear_numba import (
    CAPACITY,
    ROWS_A_PIECE,
    is_dense,
    lanes_of,
    list_places,
)
from gnnfx.kernels.threads import address, launch
from gnnfx.kernels.vectors_numba import (
    load_f32,
    load_i8,
    load_i32,
    read_f32,
    read_i32,
    scratch_floats,
    splat_i32,
    store,
    take_piece,
    to_f32,
    widen_i32,
    write_f32,
    write_i32,
)

(
    PIECES,
    ROWS,
    INPUTS,
    OUTPUTS,
    X,
    SCALE,
    ZERO_POINT,
    LOW,
    HIGH,
    WEIGHT,
    MULTIPLIER,
    BIAS,
    OUT,
    DENSE,
) = range(1, 15)
_LANES = 16  # values that are rounded at a time


@njit(forceinline=True)
def _round(a, x, places, steps, count):
    """Write code - zero_point of the `count` values of x at `places`, int32."""
    scale, zero_point = read_f32(a[SCALE]), read_i32(a[ZERO_POINT])
    for i in range(count):
        write_f32(steps + 4 * i, read_f32(x + 4 * read_i32(places + 4 * i)))
    for i in range(0, count, _LANES):
        values = load_f32(steps + 4 * i, _LANES)
        codes = widen_i32(to_codes(values, scale, zero_point, a[LOW], a[HIGH]))
        store(steps + 4 * i, codes - splat_i32(zero_point, _LANES))


@njit(forceinline=True)
def _add_products(a, out, places, steps, count, lanes):
    """Add `count` steps times their rows of the weight to a row of the result, int32 so far."""
    for channel in range(0, a[OUTPUTS], lanes):
        total = load_i32(out + 4 * channel, lanes)
        for i in range(count):
            weight = a[WEIGHT] + read_i32(places + 4 * i) * a[OUTPUTS] + channel
            step = splat_i32(read_i32(steps + 4 * i), lanes)
            total = total + step * widen_i32(load_i8(weight, lanes))
        store(out + 4 * channel, total)


def _quantized_sparse_linear(lanes):
    def kernel(a):
        places, steps = scratch_floats(CAPACITY), scratch_floats(CAPACITY)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            found = 0
            first, stop = a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]
            for row in range(first, stop):
                x, out = a[X] + 4 * row * a[INPUTS], a[OUT] + 4 * row * a[OUTPUTS]
                for channel in range(0, a[OUTPUTS], lanes):
                    store(out + 4 * channel, splat_i32(0, lanes))
                count, start = 0, 0
                while start < a[INPUTS]:
                    count = list_places(places, count, block_mask(x, start, a[INPUTS]), start)
                    start += BLOCK
                    if count > CAPACITY - BLOCK - 2 or start >= a[INPUTS]:
                        _round(a, x, places, steps, count)
                        _add_products(a, out, places, steps, count, lanes)
                        found += count
                        count = 0
                if is_dense(found, row + 1 - first, a[INPUTS]):
                    write_i32(a[DENSE], 1)
                    return
                for place in range(0, 4 * a[OUTPUTS], 4 * lanes):
                    y = to_f32(load_i32(out + place, lanes)) * load_f32(
                        a[MULTIPLIER] + place, lanes
                    )
                    if a[BIAS] != 0:
                        y = y + load_f32(a[BIAS] + place, lanes)
                    store(out + place, y)

    return kernel


def reject_quantized_sparse_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    bits: int = 8,
) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if not weight_t.is_contiguous():
        return "weight_t is not contiguous"
    return reject_floats(x=x, weight_scale=weight_scale, bias=bias)


def quantized_sparse_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight_t: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    bits: int = 8,
) -> Tensor:
    """Rows [N, O]; a dense input is handed to the dense product."""
    rows, inputs = x.shape
    outputs = weight_t.shape[1]
    out, dense = empty((rows, outputs)), torch.zeros(1, dtype=torch.int32)
    multiplier = scale * weight_scale
    codes = address(scale), address(zero_point), *code_range(bits)
    operands = [address(t) for t in (weight_t, multiplier, bias, out, dense)]
    args = [rows, inputs, outputs, address(x), *codes, *operands]
    kernel = compiled(_quantized_sparse_linear, lanes_of(outputs))
    launch(kernel, max(1, rows // ROWS_A_PIECE), args)
    if dense.item():
        return dense_product(x, scale, zero_point, weight_t, weight_scale, bias, bits)
    return out
