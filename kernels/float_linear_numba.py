"""CPU code of float32 linear layers and sums of them: tiles of rows times outputs, in registers.

All layers add to one tile, and bias, residual and activation belong to it.  Rows of graphs are many
and narrow, so that the weight stays in the cache: then this takes less time than a library, which
moves a residual to its result before it adds to it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.epilogue_numba import CHANNELS, FIRST_FREE, PIECES, ROWS, Epilogue, finish
from gnnfx.kernels.float_linear import is_small
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import load_f32, multiply_add, read_f32, splat_f32, take_piece

LAYERS, FIRST_LAYER = FIRST_FREE, FIRST_FREE + 1
_LAYER = 3  # x, transposed weight, inputs
_TILE = 6  # rows: with 64 lanes, 24 sums and 4 vectors of the weight fill 32 registers
_LANES, _LEAST_LANES = 64, 32
_MOST_WEIGHTS = 2**16
_LEAST_PRODUCTS = 2**19  # of fewer, a library is done before threads are awake
_OPERATIONS_SHIFT = 3  # multiply-adds to operations that the thread pool counts


@njit(forceinline=True)
def _tile(a, row, channel, lanes):
    """Six rows of a panel of outputs."""
    zero = splat_f32(0.0, lanes)
    y0, y1, y2, y3, y4, y5 = zero, zero, zero, zero, zero, zero
    for layer in range(a[LAYERS]):
        at = FIRST_LAYER + _LAYER * layer
        step = 4 * a[at + 2]
        x, weight = a[at] + step * row, a[at + 1] + 4 * channel
        for _ in range(a[at + 2]):
            w = load_f32(weight, lanes)
            y0 = multiply_add(splat_f32(read_f32(x), lanes), w, y0)
            y1 = multiply_add(splat_f32(read_f32(x + step), lanes), w, y1)
            y2 = multiply_add(splat_f32(read_f32(x + 2 * step), lanes), w, y2)
            y3 = multiply_add(splat_f32(read_f32(x + 3 * step), lanes), w, y3)
            y4 = multiply_add(splat_f32(read_f32(x + 4 * step), lanes), w, y4)
            y5 = multiply_add(splat_f32(read_f32(x + 5 * step), lanes), w, y5)
            x += 4
            weight += 4 * a[CHANNELS]
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
    for layer in range(a[LAYERS]):
        at = FIRST_LAYER + _LAYER * layer
        x, weight = a[at] + 4 * a[at + 2] * row, a[at + 1] + 4 * channel
        for _ in range(a[at + 2]):
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


def _linear_sum():
    def kernel(a):
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            row, end = a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]
            while row < end:
                tiled = row + _TILE <= end
                for channel in range(0, a[CHANNELS] - _LEAST_LANES, _LANES):
                    _panel(a, row, tiled, channel, _LANES)
                if a[CHANNELS] % _LANES != 0:
                    _panel(a, row, tiled, a[CHANNELS] - _LEAST_LANES, _LEAST_LANES)
                row += _TILE if tiled else 1

    return kernel


def reject_tiles(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    """Why `tiles` cannot take these arguments of `linear`, or is not the fastest."""
    if residual is None:
        return "with nothing to add to it, a library's product takes no longer"
    if x.dtype != torch.float32:
        return f"x must be float32, got {x.dtype}"
    if not x.is_contiguous() or not residual.is_contiguous():
        return "rows of x and residual must be contiguous"
    if is_small(x, weight, bias, residual, activation):
        return "the product is done sooner than the kernel is set up"
    return reject_linear_sum(x.shape[0], [weight])


def tiles(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`linear` as a sum of one layer."""
    return linear_sum([(x, weight)], bias, residual, activation)


def reject_linear_sum(rows: int, weights: Sequence[Tensor]) -> str | None:
    """Why the kernel cannot take layers of these weights [O, K], or is not the fastest."""
    outputs, values = weights[0].shape[0], sum(weight.numel() for weight in weights)
    if not torch.cpu._is_avx512_supported():
        return "the registers of this CPU do not hold a tile"
    if outputs % _LEAST_LANES:
        return f"{outputs} outputs are no multiple of {_LEAST_LANES}"
    if values > _MOST_WEIGHTS:
        return f"{values} weights do not stay in the nearest caches"
    if values * rows < _LEAST_PRODUCTS:
        return "the products are done before threads are awake"
    return None


def linear_sum(
    layers: Sequence[tuple[Tensor, Tensor]],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """act(sum of x @ weight.T + bias + residual), [N, O]; rows are contiguous float32."""
    rows, outputs = layers[0][0].shape[0], layers[0][1].shape[0]
    out = empty((rows, outputs))
    # Neighbouring lanes hold neighbouring outputs.
    transposed = [weight.t().contiguous() for _, weight in layers]
    args = [*Epilogue(None, bias, residual, activation).arguments(out), len(layers)]
    for (x, _), weight in zip(layers, transposed, strict=True):
        args += [address(x), address(weight), x.shape[1]]
    work = outputs * sum(rows * x.shape[1] for x, _ in layers) >> _OPERATIONS_SHIFT
    launch(compiled(_linear_sum), count_pieces(work, -(-rows // _TILE)), args)
    return out
