"""Triton code of `gnnfx.kernels.aggregate_linear`: gather, reduce, requantize and multiply.

The edges into a tile of adjacent rows are adjacent too.  They are gathered BLOCK_E at a time, and
added to their rows by a product on tensor cores,

    total[BLOCK_M, BLOCK_K] += member[BLOCK_M, BLOCK_E] @ codes[BLOCK_E, BLOCK_K]

where member is 1 for the edges of a row and 0 for others: exact, and as fast for one row of many
edges as for many rows of few.  The total becomes int8 in registers and meets the weight there.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.codes_triton import (
    EXACT,
    add_bias,
    empty_result,
    load_codes,
    reject_strided,
    store_rows,
    to_codes,
)
from gnnfx.kernels.epilogue import ACTIVATIONS
from gnnfx.kernels.linear_triton import weight_sums

_BLOCK_M = 32
_MOST_OUTPUTS = 256  # a program holds whole rows of the result


@triton.jit
def _quantized_aggregate_linear(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    rowptr_ptr,
    src_ptr,
    mid_scale_ptr,
    mid_zero_point_ptr,
    weight_ptr,
    weight_scale_ptr,
    aggregate_row_scale_ptr,
    self_weight_ptr,
    bias_ptr,
    out_scale_ptr,
    out_zero_point_ptr,
    row_scale_ptr,
    out_ptr,
    num_rows,
    num_outs,
    channels,
    x_width,
    weight_width,
    out_width,
    BITS: tl.constexpr,
    WEIGHT_BITS: tl.constexpr,
    OUT_BITS: tl.constexpr,
    REDUCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y [N, O] from codes x [S, K] and w [O, K]; one program a tile of BLOCK_M rows."""
    top = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = top + tl.arange(0, BLOCK_M)
    row_mask = rows < num_rows
    outs = tl.arange(0, BLOCK_N).to(tl.int64)
    out_mask = outs < num_outs
    # Edges are counted from the first one of the tile.
    first_edge = tl.load(rowptr_ptr + top)
    src_ptr += first_edge
    starts = tl.load(rowptr_ptr + rows, mask=row_mask, other=0)
    ends = tl.load(rowptr_ptr + rows + 1, mask=row_mask, other=0)
    degree = (ends - starts)[:, None].to(tl.int32)
    starts, ends = (starts - first_edge).to(tl.int32), (ends - first_edge).to(tl.int32)
    num_edges = tl.max(ends, axis=0)
    scale, zero_point = tl.load(scale_ptr), tl.load(zero_point_ptr)
    mid_scale, mid_zero_point = tl.load(mid_scale_ptr), tl.load(mid_zero_point_ptr)
    multiplier = scale
    if REDUCE == "mean":
        multiplier = tl.math.div_rn(scale, tl.maximum(degree, 1).to(tl.float32))
    if aggregate_row_scale_ptr is not None:
        row_scales = tl.load(aggregate_row_scale_ptr + rows, mask=row_mask, other=0.0)
        multiplier *= row_scales[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for k in range(0, channels, BLOCK_K):
        total = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
        for edge in range(0, num_edges, BLOCK_E):
            edges = edge + tl.arange(0, BLOCK_E)
            live = edges < num_edges
            sources = tl.load(src_ptr + edges, mask=live, other=0).to(tl.int64)
            codes = load_codes(x_ptr, sources, live, k, x_width, BITS, BLOCK_K)
            member = (edges[None, :] >= starts[:, None]) & (edges[None, :] < ends[:, None])
            total = tl.dot(member.to(tl.int8), codes, total, out_dtype=tl.int32)
        mid = (total - zero_point * degree).to(tl.float32)
        mid *= multiplier
        if self_weight_ptr is not None:
            own = load_codes(x_ptr, rows, row_mask, k, x_width, BITS, BLOCK_K).to(tl.int32)
            mid += tl.load(self_weight_ptr) * (scale * (own - zero_point).to(tl.float32))
        # Channels past the last one meet weights of 0, so their codes do not matter.
        mid_codes = to_codes(mid, mid_scale, mid_zero_point, 8).to(tl.int8)
        w = load_codes(weight_ptr, outs, out_mask, k, weight_width, WEIGHT_BITS, BLOCK_K)
        acc = tl.dot(mid_codes, tl.trans(w), acc, out_dtype=tl.int32)
    if mid_zero_point != 0:
        sums = weight_sums(weight_ptr, outs, out_mask, channels, weight_width, WEIGHT_BITS, BLOCK_K)
        acc -= mid_zero_point * sums[None, :]
    weight_scale = tl.load(weight_scale_ptr + outs, mask=out_mask, other=0.0)
    multiplier = (mid_scale * weight_scale)[None, :]
    if row_scale_ptr is not None:
        multiplier *= tl.load(row_scale_ptr + rows, mask=row_mask, other=0.0)[:, None]
    y = acc.to(tl.float32) * multiplier
    y = add_bias(y, bias_ptr, None, rows, row_mask, 0, num_outs, ACTIVATION)
    store_rows(
        out_ptr,
        y,
        rows,
        row_mask,
        0,
        num_outs,
        out_width,
        out_scale_ptr,
        out_zero_point_ptr,
        OUT_BITS,
    )


def reject_quantized_aggregate_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    mid_scale: Tensor,
    mid_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    aggregate_row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    weight_bits: int = 8,
    out_bits: int = 8,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
) -> str | None:
    if reduce not in ("sum", "mean"):
        return f"reduce={reduce}: only sums can be taken by a matrix product"
    if weight.shape[0] > _MOST_OUTPUTS:
        return f"{weight.shape[0]} outputs; the kernel holds rows of {_MOST_OUTPUTS}"
    return reject_strided(
        x=x,
        rowptr=rowptr,
        src=src,
        weight=weight,
        weight_scale=weight_scale,
        aggregate_row_scale=aggregate_row_scale,
        bias=bias,
        row_scale=row_scale,
    )


def quantized_aggregate_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    mid_scale: Tensor,
    mid_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    aggregate_row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    weight_bits: int = 8,
    out_bits: int = 8,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
) -> Tensor:
    rows, outs = rowptr.shape[0] - 1, weight.shape[0]
    out = empty_result(x, rows, outs, out_scale, out_bits)
    block_n = max(16, triton.next_power_of_2(outs))
    _quantized_aggregate_linear[(triton.cdiv(rows, _BLOCK_M),)](
        x,
        scale,
        zero_point,
        rowptr,
        src,
        mid_scale,
        mid_zero_point,
        weight,
        weight_scale,
        aggregate_row_scale,
        self_weight,
        bias,
        out_scale,
        out_zero_point,
        row_scale,
        out,
        rows,
        outs,
        channels,
        x.shape[1],
        weight.shape[1],
        out.shape[1],
        BITS=bits,
        WEIGHT_BITS=weight_bits,
        OUT_BITS=out_bits,
        REDUCE=reduce,
        ACTIVATION=ACTIVATIONS.index(activation),
        BLOCK_E=64,
        BLOCK_M=_BLOCK_M,
        BLOCK_N=block_n,
        BLOCK_K=128 if channels > 64 else 64,
        num_warps=8 if block_n > 128 else 4,
        **EXACT,
    )
    return out
