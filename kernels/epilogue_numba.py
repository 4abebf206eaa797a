"""`gnnfx.kernels.epilogue` on a block of channels held in registers.

Every kernel with an epilogue finds its operands in the same places of its argument block; an
address of 0 stands for an operand that is not there.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from gnnfx.kernels.epilogue import ACTIVATIONS
from gnnfx.kernels.quantize import code_range
from gnnfx.kernels.threads import address
from gnnfx.kernels.vectors_numba import (
    clamp,
    exp,
    lesser,
    load_f32_like,
    narrow_i8,
    read_f32,
    read_i32,
    relu,
    round_small,
    splat_f32_like,
    splat_i32_like,
    store,
    zero_for_nan,
)

PIECES, ROWS, CHANNELS, OUT = 1, 2, 3, 4
ROW_SCALE, BIAS, RESIDUAL, ACTIVATION = 5, 6, 7, 8
OUT_SCALE, OUT_ZERO_POINT, OUT_LOW, OUT_HIGH = 9, 10, 11, 12
FIRST_FREE = 13
RELU, ELU = ACTIVATIONS.index("relu"), ACTIVATIONS.index("elu")


def epilogue_arguments(
    num_rows: int,
    channels: int,
    out: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> list[int]:
    """Places ROWS to OUT_HIGH of the argument block."""
    return [
        num_rows,
        channels,
        address(out),
        address(row_scale),
        address(bias),
        address(residual),
        ACTIVATIONS.index(activation),
        address(out_scale),
        address(out_zero_point),
        *code_range(out_bits),
    ]


class Epilogue(NamedTuple):
    """The operands of `gnnfx.kernels.epilogue` for some rows of sums [N, O]."""

    row_scale: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    out_scale: Tensor | None = None
    out_zero_point: Tensor | None = None
    out_bits: int = 8

    def part(self, rows: slice) -> Epilogue:
        """The operands of these rows alone."""
        row_scale = None if self.row_scale is None else self.row_scale[rows]
        residual = None if self.residual is None else self.residual[rows]
        return self._replace(row_scale=row_scale, residual=residual)

    def arguments(self, out: Tensor) -> list[int]:
        """Places ROWS to OUT_HIGH of the argument block, for a result `out` [N, O]."""
        operands = self.row_scale, self.bias, self.residual, self.activation
        qparams = self.out_scale, self.out_zero_point, self.out_bits
        rows, channels = out.shape
        return epilogue_arguments(rows, channels, out, *operands, *qparams)


@njit(forceinline=True)
def to_codes(y, scale, zero_point, low, high):
    """int8 codes of a float vector; the qparams are scalars."""
    least = splat_f32_like(np.float32(low - zero_point), y)
    most = splat_f32_like(np.float32(high - zero_point), y)
    steps = zero_for_nan(y * splat_f32_like(np.float32(1) / scale, y))
    steps = round_small(clamp(steps, least, most))
    return narrow_i8(steps + splat_i32_like(zero_point, steps))


@njit(forceinline=True)
def elu(y):
    """y where it is positive, else exp(y) - 1; NaN stays."""
    zero = splat_f32_like(np.float32(0), y)
    return relu(y) + (exp(lesser(y, zero)) - splat_f32_like(np.float32(1), y))


@njit(forceinline=True)
def finish(y, a, row, channel):
    """Add bias and residual, activate, and store y as floats or int8 codes."""
    place = row * a[CHANNELS] + channel
    if a[BIAS] != 0:
        y = y + load_f32_like(a[BIAS] + 4 * channel, y)
    if a[RESIDUAL] != 0:
        y = y + load_f32_like(a[RESIDUAL] + 4 * place, y)
    if a[ACTIVATION] == RELU:
        y = relu(y)
    if a[ACTIVATION] == ELU:
        y = elu(y)
    if a[OUT_SCALE] == 0:
        store(a[OUT] + 4 * place, y)
    else:
        scale, zero_point = read_f32(a[OUT_SCALE]), read_i32(a[OUT_ZERO_POINT])
        store(a[OUT] + place, to_codes(y, scale, zero_point, a[OUT_LOW], a[OUT_HIGH]))
