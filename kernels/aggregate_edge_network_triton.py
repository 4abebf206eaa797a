"""Triton code of `aggregate_edge_network`: sums over the edges of a row, then torch's product."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from gnnfx.kernels.codes_triton import EXACT, load_row_bounds, reject_strided
from gnnfx.kernels.epilogue import finish

_BLOCK_VALUES = 2**26  # of the sums that exist at once


@triton.jit
def _sum_products(
    x_ptr,
    rowptr_ptr,
    src_ptr,
    perm_ptr,
    edge_ptr,
    out_ptr,
    first_row,
    channels,
    features,
    MEAN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (f32 [R, K, C]) = edge[perm[e], k] * x[src[e], c] summed over the edges of each row."""
    row = tl.program_id(0).to(tl.int64)
    start, end = load_row_bounds(rowptr_ptr, row + first_row)
    own = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_K, BLOCK_C), dtype=tl.float32)
    for edge in range(start, end):
        source = tl.load(src_ptr + edge).to(tl.int64)
        place = tl.load(perm_ptr + edge).to(tl.int64)
        x = tl.load(x_ptr + source * channels + cols, mask=cols < channels, other=0.0)
        values = tl.load(edge_ptr + place * features + own, mask=own < features, other=0.0)
        acc += values[:, None] * x[None, :]
    if MEAN:
        acc = tl.math.div_rn(acc, tl.maximum(end - start, 1).to(tl.float32))
    places = (row * features + own[:, None]) * channels + cols[None, :]
    mask = (own < features)[:, None] & (cols < channels)[None, :]
    tl.store(out_ptr + places, acc, mask=mask)


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
    return reject_strided(x=x, rowptr=rowptr, src=src, perm=perm, edge=edge, weight=weight)


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
    total = x.new_empty((num_rows, outputs))
    size = max(_BLOCK_VALUES // max(features * channels, 1), 1)
    block_c = min(64, max(4, triton.next_power_of_2(channels)))
    block_k = min(2048 // block_c, triton.next_power_of_2(max(features, 1)))
    blocks = triton.cdiv(features, block_k), triton.cdiv(channels, block_c)
    for first in range(0, num_rows, size):
        rows = min(size, num_rows - first)
        sums = x.new_empty((rows, features * channels))
        _sum_products[(rows, *blocks)](
            x,
            rowptr,
            src,
            perm,
            edge,
            sums,
            first,
            channels,
            features,
            MEAN=reduce == "mean",
            BLOCK_K=block_k,
            BLOCK_C=block_c,
            **EXACT,
        )
        total[first : first + rows] = functional.linear(sums, weight.view(outputs, -1))
    result: Tensor = finish(total, None, None, None, bias, residual, activation)
    return result
