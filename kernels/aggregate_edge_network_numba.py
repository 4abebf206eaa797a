"""CPU code of `aggregate_edge_network`: sums over edges of a block of rows, then one product.

The sums, a value for each feature of edges and channel of nodes, stay in the cache between.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_floats, reject_large
from gnnfx.kernels.csr_numba import piece_start, source, source_ahead
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    load_f32,
    multiply_add,
    prefetch,
    read_f32,
    read_i32,
    splat_f32,
    store,
    take_piece,
)

PIECES, ROWS, CHANNELS, FEATURES, X, ROWPTR, SRC, PERM, EDGE, EDGES, MEAN, OUT = range(1, 13)
# Values of a block of sums: they fit a core's part of the cache with the weight.
_BLOCK_VALUES = 2**20


def _sum_products(lanes, together):
    """OUT [N, K, C]: edge[perm[e], k] * x[src[e], c] summed over the edges of each row."""
    row_bytes = 4 * lanes

    def kernel(a):
        rows, channels, features, rowptr = a[ROWS], a[CHANNELS], a[FEATURES], a[ROWPTR]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first, stop = read_i32(rowptr + 4 * row), read_i32(rowptr + 4 * row + 4)
                factor = np.float32(1)
                if a[MEAN] != 0:
                    factor /= np.float32(max(stop - first, 1))
                factors = splat_f32(factor, lanes)
                feature = 0
                while feature < features:
                    feature = min(feature, features - together)
                    channel = 0
                    while channel < channels:
                        channel = min(channel, channels - lanes)
                        y0 = splat_f32(np.float32(0), lanes)
                        y1, y2, y3 = y0, y0, y0
                        for edge in range(first, stop):
                            ahead = source_ahead(a[SRC], edge, a[EDGES] - 1) * channels + channel
                            prefetch(a[X] + 4 * ahead, row_bytes)
                            place = source(a[SRC], edge) * channels + channel
                            x = load_f32(a[X] + 4 * place, lanes)
                            own = a[EDGE] + 4 * (source(a[PERM], edge) * features + feature)
                            y0 = multiply_add(splat_f32(read_f32(own), lanes), x, y0)
                            if together == 4:
                                y1 = multiply_add(splat_f32(read_f32(own + 4), lanes), x, y1)
                                y2 = multiply_add(splat_f32(read_f32(own + 8), lanes), x, y2)
                                y3 = multiply_add(splat_f32(read_f32(own + 12), lanes), x, y3)
                        out = a[OUT] + 4 * ((row * features + feature) * channels + channel)
                        store(out, y0 * factors)
                        if together == 4:
                            store(out + 4 * channels, y1 * factors)
                            store(out + 8 * channels, y2 * factors)
                            store(out + 12 * channels, y3 * factors)
                        channel += lanes
                    feature += together

    return kernel


def reject_aggregate_edge_network(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    edge: Tensor,
    weight: Tensor,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    if not perm.is_contiguous():
        return "perm is not contiguous"
    if 0 in weight.shape:
        return "there is nothing to multiply"
    floats = {"x": x, "edge": edge, "weight": weight, "bias": bias, "residual": residual}
    return reject_large(rowptr, src) or reject_floats(**floats)


def aggregate_edge_network(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    edge: Tensor,
    weight: Tensor,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    num_rows, (outputs, features, channels) = rowptr.shape[0] - 1, weight.shape
    out = empty((num_rows, outputs))
    size = max(_BLOCK_VALUES // (features * channels), 1)
    sums, flat = empty((min(size, num_rows), features * channels)), weight.view(outputs, -1)
    kernel = compiled(_sum_products, choose_lanes(channels, 64), 4 if features >= 4 else 1)
    operations = (src.shape[0] // max(num_rows, 1) + 1) * features * channels
    for first in range(0, num_rows, size):
        part = slice(first, min(first + size, num_rows))
        rows = part.stop - first
        pieces = count_pieces(rows * operations, rows)
        where = (address(x), address(rowptr) + 4 * first, *map(address, (src, perm, edge)))
        args = (rows, channels, features, *where, src.shape[0], reduce == "mean", address(sums))
        launch(kernel, pieces, list(args))
        below = None if residual is None else residual[part]
        out[part] = LINEAR.run(sums[:rows], flat, bias, below, activation)
    return out
