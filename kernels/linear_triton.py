"""Triton code of `gnnfx.kernels.linear`: an integer matrix product on tensor cores.

    y = (sum over k of (x[i, k] - zero_point) * w[o, k]) * m,    m = scale * weight_scale[o]

The product is taken of the codes as they are, because code - zero_point needs nine bits; the zero
point is taken off afterwards, times the sum of the weight row, and only where it is not 0.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from functools import partial

import torch
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
)
from gnnfx.kernels.epilogue import ACTIVATIONS
from gnnfx.kernels.linear_sum import in_turn, reject_one
from gnnfx.kernels.quantize_triton import quantize


@triton.jit
def weight_sums(
    weight_ptr, outs, out_mask, channels, width, BITS: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Sums (int32 [R]) of the rows `outs` of weight codes [O, channels], `width` bytes a row."""
    total = tl.zeros((outs.shape[0],), dtype=tl.int32)
    for k in range(0, channels, BLOCK_K):
        codes = load_codes(weight_ptr, outs, out_mask, k, width, BITS, BLOCK_K)
        total += tl.sum(codes.to(tl.int32), axis=1)
    return total


@triton.jit
def _quantized_linear(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    residual_ptr,
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
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y [N, O] from codes x [N, K] and w [O, K]; one program a tile of y."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < num_rows
    first = tl.program_id(1) * BLOCK_N
    outs = first + tl.arange(0, BLOCK_N).to(tl.int64)
    out_mask = outs < num_outs
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for k in range(0, channels, BLOCK_K):
        x = load_codes(x_ptr, rows, row_mask, k, x_width, BITS, BLOCK_K)
        w = load_codes(weight_ptr, outs, out_mask, k, weight_width, WEIGHT_BITS, BLOCK_K)
        acc = tl.dot(x, tl.trans(w), acc, out_dtype=tl.int32)
    zero_point = tl.load(zero_point_ptr)
    if zero_point != 0:
        sums = weight_sums(weight_ptr, outs, out_mask, channels, weight_width, WEIGHT_BITS, BLOCK_K)
        acc -= zero_point * sums[None, :]
    weight_scale = tl.load(weight_scale_ptr + outs, mask=out_mask, other=0.0)
    multiplier = (tl.load(scale_ptr) * weight_scale)[None, :]
    if row_scale_ptr is not None:
        multiplier *= tl.load(row_scale_ptr + rows, mask=row_mask, other=0.0)[:, None]
    y = acc.to(tl.float32) * multiplier
    y = add_bias(y, bias_ptr, residual_ptr, rows, row_mask, first, num_outs, ACTIVATION)
    store_rows(
        out_ptr,
        y,
        rows,
        row_mask,
        first,
        num_outs,
        out_width,
        out_scale_ptr,
        out_zero_point_ptr,
        OUT_BITS,
    )


def reject_quantized_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    channels: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    weight_bits: int = 8,
    out_bits: int = 8,
    row_scale: Tensor | None = None,
) -> str | None:
    return reject_strided(
        x=None if x.dtype == torch.float32 else x,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
        residual=residual,
        row_scale=row_scale,
    )


def quantized_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    channels: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    weight_bits: int = 8,
    out_bits: int = 8,
    row_scale: Tensor | None = None,
) -> Tensor:
    if x.dtype == torch.float32:
        x = quantize(x.contiguous(), scale, zero_point, bits)
    rows, outs = x.shape[0], weight.shape[0]
    out = empty_result(x, rows, outs, out_scale, out_bits)
    block_m = 128 if rows > 4096 else 32
    block_n = min(128, max(16, triton.next_power_of_2(outs)))
    grid = (triton.cdiv(rows, block_m), triton.cdiv(outs, block_n))
    _quantized_linear[grid](
        x,
        scale,
        zero_point,
        weight,
        weight_scale,
        bias,
        residual,
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
        ACTIVATION=ACTIVATIONS.index(activation),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=128 if channels >= 128 else 64,
        num_warps=8 if block_m * block_n > 8192 else 4,
        **EXACT,
    )
    return out


quantized_linear_sum = partial(in_turn, quantized_linear)
reject_quantized_linear_sum = partial(reject_one, reject_quantized_linear)
