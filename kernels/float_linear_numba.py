"""CPU code of float32 linear layers: tiles of rows times outputs, in registers.

Bias, residual and activation belong to a tile.  Rows of graphs are many and narrow, so that the
weight stays in the cache: then this takes less time than a library, most of all with a residual,
which a library moves to its result before it adds to it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.epilogue_numba import CHANNELS, FIRST_FREE, PIECES, ROWS, Epilogue, finish
from gnnfx.kernels.float_linear import is_small
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.tiles_numba import (
    LEAST_PANEL,
    OPERATIONS_SHIFT,
    TILE,
    multiply_tile,
    reject_weights,
)
from gnnfx.kernels.vectors_numba import load_f32, multiply_add, read_f32, splat_f32, take_piece

X, WEIGHT, INPUTS = range(FIRST_FREE, FIRST_FREE + 3)
_LEAST_PRODUCTS = 2**19  # of fewer, a library is done before threads are awake


@njit(forceinline=True)
def _tile(a, row, channel, lanes):
    """Six rows of a panel of outputs."""
    x, weight = a[X] + 4 * a[INPUTS] * row, a[WEIGHT] + 4 * channel
    y0, y1, y2, y3, y4, y5 = multiply_tile(x, a[INPUTS], weight, a[CHANNELS], lanes)
    finish(y0, a, row, channel)
    finish(y1, a, row + 1, channel)
    finish(y2, a, row + 2, channel)
    finish(y3, a, row + 3, channel)
    finish(y4, a, row + 4, channel)
    finish(y5, a, row + 5, channel)


@njit(forceinline=True)
def _row(a, row, channel, lanes):
    """One row of a panel of outputs."""
    y = splat_f32(0.0, lanes)
    x, weight = a[X] + 4 * a[INPUTS] * row, a[WEIGHT] + 4 * channel
    for _ in range(a[INPUTS]):
        y = multiply_add(splat_f32(read_f32(x), lanes), load_f32(weight, lanes), y)
        x += 4
        weight += 4 * a[CHANNELS]
    finish(y, a, row, channel)


@njit(forceinline=True)
def _panel(a, row, tiled, channel, lanes):
    if tiled:
        _tile(a, row, channel, lanes)
    else:
        _row(a, row, channel, lanes)


@njit(forceinline=True)
def _rows(a, row, tiled):
    """All panels of a tile or a row; where the last is too wide, it ends at the last output."""
    outputs, channel = a[CHANNELS], 0
    while channel + 64 <= outputs:
        _panel(a, row, tiled, channel, 64)
        channel += 64
    if outputs & 32 != 0:
        _panel(a, row, tiled, channel, 32)
        channel += 32
    if outputs & 16 != 0:
        _panel(a, row, tiled, channel, 16)
        channel += 16
    while channel < outputs:
        _panel(a, row, tiled, min(channel, outputs - LEAST_PANEL), LEAST_PANEL)
        channel += LEAST_PANEL


def _linear():
    def kernel(a):
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            row, end = a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]
            while row < end:
                tiled = row + TILE <= end
                _rows(a, row, tiled)
                row += TILE if tiled else 1

    return kernel


def reject_tiles(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    """Why `tiles` cannot take these arguments of `linear`, or is not the fastest."""
    if x.dtype != torch.float32:
        return f"x must be float32, got {x.dtype}"
    if not all(rows is None or rows.is_contiguous() for rows in (x, residual)):
        return "rows of x and residual must be contiguous"
    if is_small(x, weight, bias, activation):
        return "the product is done sooner than the kernel is set up"
    outputs = weight.shape[0]
    if (wrong := reject_weights(weight.numel())) is not None:
        return wrong
    if outputs < LEAST_PANEL:
        return f"{outputs} outputs are fewer than a tile's {LEAST_PANEL}"
    if weight.numel() * x.shape[0] < _LEAST_PRODUCTS:
        return "the products are done before threads are awake"
    return None


def tiles(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """act(x @ weight.T + bias + residual), [N, O]; rows are contiguous float32."""
    rows, inputs = x.shape
    out = empty((rows, weight.shape[0]))
    transposed = weight.t().contiguous()  # neighbouring lanes hold neighbouring outputs
    args = Epilogue(None, bias, residual, activation).arguments(out)
    args += [address(x), address(transposed), inputs]
    work = weight.numel() * rows >> OPERATIONS_SHIFT
    launch(compiled(_linear), count_pieces(work, -(-rows // TILE)), args)
    return out
