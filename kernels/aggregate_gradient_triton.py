"""Triton code of `gnnfx.kernels.aggregate_gradient`: one program a destination row.

Its gradient row is read once, added to the rows of its sources (atomically: destinations share
sources) or multiplied with them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.codes_triton import EXACT, load_row_bounds, load_rows
from gnnfx.kernels.csr import reject_floats
from gnnfx.kernels.reduce_triton import tile


@triton.jit
def _aggregate_transposed(
    grad_ptr,
    rowptr_ptr,
    src_ptr,
    weight_ptr,
    out_ptr,
    channels,
    heads,
    head_channels,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add w[e] * grad[i] (f32 [N, C]) to row src[e] of out, for the edges e into node i."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    start, end = load_row_bounds(rowptr_ptr, row)
    cols = first + tl.arange(0, BLOCK_C)
    rows = row + tl.zeros((1,), dtype=tl.int64)
    grad = load_rows(grad_ptr, rows, rows >= 0, first, channels, BLOCK_C)  # [1, BLOCK_C]
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
        inside = live[:, None] & (cols < channels)[None, :]
        values = tl.broadcast_to(grad, (BLOCK_E, BLOCK_C))
        if weight_ptr is not None:
            places = edges[:, None] * heads + (cols // head_channels)[None, :]
            values *= tl.load(weight_ptr + places, mask=inside, other=0.0)
        places = sources[:, None] * channels + cols[None, :]
        tl.atomic_add(out_ptr + places, values, mask=inside, sem="relaxed")


@triton.jit
def _edge_products(
    grad_ptr,
    x_ptr,
    rowptr_ptr,
    src_ptr,
    out_ptr,
    heads,
    head_channels,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (f32 [E, heads]) = sum of grad[i] * x[src[e]] over the channels of each head."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    start, end = load_row_bounds(rowptr_ptr, row)
    # Rows of heads: row r of x is rows r * heads and on of a matrix that is head_channels wide.
    rows = row * heads + head + tl.zeros((1,), dtype=tl.int64)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64) * heads + head
        total = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float32)
        for first in range(0, head_channels, BLOCK_C):
            grad = load_rows(grad_ptr, rows, rows >= 0, first, head_channels, BLOCK_C)
            total += grad * load_rows(x_ptr, sources, live, first, head_channels, BLOCK_C)
        tl.store(out_ptr + edges * heads + head, tl.sum(total, axis=1), mask=live)


def reject_aggregate_transposed(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> str | None:
    return reject_floats(grad=grad, weight=weight)


def aggregate_transposed(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> Tensor:
    rows, channels = rowptr.shape[0] - 1, grad.shape[1:].numel()
    heads = weight.shape[1] if weight is not None and weight.dim() == 2 else 1
    out = torch.zeros((num_src, *grad.shape[1:]), device=grad.device)
    blocks = tile(src.shape[0], rows, channels)
    _aggregate_transposed[(rows, triton.cdiv(channels, blocks["BLOCK_C"]))](
        *(grad, rowptr, src, weight, out, channels, heads, channels // heads), **blocks, **EXACT
    )
    return out


def reject_edge_products(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> str | None:
    return reject_floats(grad=grad, x=x)


def edge_products(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> Tensor:
    rows, channels = rowptr.shape[0] - 1, grad.shape[1:].numel()
    heads = grad.shape[1] if per_head else 1
    out = grad.new_empty((src.shape[0], heads) if per_head else (src.shape[0],))
    blocks = tile(src.shape[0], rows, channels // heads)
    _edge_products[(rows, heads)](
        *(grad, x, rowptr, src, out, heads, channels // heads), **blocks, **EXACT
    )
    return out
