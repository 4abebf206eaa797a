"""CPU code of `aggregate`: a block of channels of one row at a time, in registers."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled, half_lanes
from gnnfx.kernels.csr import reject_floats, reject_large
from gnnfx.kernels.csr_numba import piece_start, source, source_ahead
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    FIRST_FREE,
    PIECES,
    ROW_SCALE,
    ROWS,
    epilogue_arguments,
    finish,
)
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import Kernel, address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    greater,
    lesser,
    load_f32,
    load_f32_like,
    prefetch,
    read_f32,
    read_i32,
    splat_f32,
    splat_f32_like,
    take_piece,
)

X, SRC, ROWPTR, EDGES, WEIGHT, MEAN, SELF_WEIGHT, HEADS = range(FIRST_FREE, FIRST_FREE + 8)


@njit(forceinline=True)
def _finish_row(total, a, row, channel, degree):
    """Scale the sum of a row, add the row itself, and finish."""
    if a[MEAN] != 0:  # by a product: LLVM would also divide sums, by 1, to save the branch
        total = total * splat_f32_like(np.float32(1) / np.float32(max(degree, 1)), total)
    if a[ROW_SCALE] != 0:
        total = total * splat_f32_like(read_f32(a[ROW_SCALE] + 4 * row), total)
    if a[SELF_WEIGHT] != 0:
        own = load_f32_like(a[X] + 4 * (row * a[CHANNELS] + channel), total)
        total = total + splat_f32_like(read_f32(a[SELF_WEIGHT]), total) * own
    finish(total, a, row, channel)


def _reduce(lanes, reduce, weighted):
    """One reduction; `weighted` takes a factor for each edge and head."""
    start = np.float32({"sum": 0, "max": -np.inf, "min": np.inf}[reduce])
    greatest, least, row_bytes = reduce == "max", reduce == "min", 4 * lanes

    def kernel(a):
        rows, width, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge, heads, weight = a[EDGES] - 1, a[HEADS], a[WEIGHT]
        channels = width // heads
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                for head in range(heads):
                    channel, end = head * channels, (head + 1) * channels
                    while channel < end:
                        channel = min(channel, end - lanes)
                        column = x + 4 * channel
                        total = splat_f32(start, lanes)
                        for edge in range(first, stop):
                            ahead = source_ahead(src, edge, last_edge)
                            prefetch(column + 4 * width * ahead, row_bytes)
                            value = load_f32(column + 4 * width * source(src, edge), lanes)
                            if weighted:
                                factor = read_f32(weight + 4 * (edge * heads + head))
                                value = value * splat_f32(factor, lanes)
                            if greatest:
                                total = greater(total, value)
                            elif least:
                                total = lesser(total, value)
                            else:
                                total = total + value
                        if first == stop:
                            total = splat_f32(np.float32(0), lanes)
                        _finish_row(total, a, row, channel, stop - first)
                        channel += lanes

    return kernel


def _sum_pair(lanes, weighted):
    """A sum of more than `lanes` channels and at most twice as many, in one sweep.

    The second block of lanes ends where the row ends and overlaps the first.  `weighted` takes a
    factor for each edge.
    """
    both = 8 * lanes

    def kernel(a):
        rows, channels, rowptr, src, x = a[ROWS], a[CHANNELS], a[ROWPTR], a[SRC], a[X]
        last_edge, row_bytes, second = a[EDGES] - 1, 4 * channels, channels - lanes
        weight = a[WEIGHT]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                zero = splat_f32(np.float32(0), lanes)
                left, right = zero, zero
                for edge in range(first, stop):
                    prefetch(x + row_bytes * source_ahead(src, edge, last_edge), both)
                    values = x + row_bytes * source(src, edge)
                    here, there = load_f32(values, lanes), load_f32(values + 4 * second, lanes)
                    if weighted:
                        factor = splat_f32(read_f32(weight + 4 * edge), lanes)
                        here, there = here * factor, there * factor
                    left, right = left + here, right + there
                _finish_row(left, a, row, 0, stop - first)
                _finish_row(right, a, row, second, stop - first)

    return kernel


def reject_aggregate(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    wrong = reject_floats(x=x, weight=weight, row_scale=row_scale, bias=bias, residual=residual)
    return wrong or reject_large(rowptr, src)


def aggregate(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    num_rows, edges = rowptr.shape[0] - 1, src.shape[0]
    out = empty((num_rows, *x.shape[1:]))
    if out.numel() == 0:
        return out
    heads = weight.shape[1] if weight is not None and weight.dim() == 2 else 1
    width = x.shape[1:].numel()
    epilogue = epilogue_arguments(num_rows, width, out, row_scale, bias, residual, activation)
    args = [
        *epilogue,
        address(x),
        address(src),
        address(rowptr),
        edges,
        address(weight),
        reduce == "mean",
        address(self_weight),
        heads,
    ]
    kernel = _choose_kernel(width, heads, reduce, weight is not None)
    launch(kernel, count_pieces((edges + num_rows) * width, num_rows), args)
    return out


def _choose_kernel(width: int, heads: int, reduce: str, weighted: bool) -> Kernel:
    lanes = choose_lanes(width // heads)
    if lanes < width and 2 < width < 64 and heads == 1 and reduce in ("sum", "mean"):
        return compiled(_sum_pair, half_lanes(width), weighted)
    return compiled(_reduce, lanes, "sum" if reduce == "mean" else reduce, weighted)
