"""CPU code of `quantized_aggregate_linear`: both ops on a block of rows that stays in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.kernels.epilogue_numba import Epilogue
from gnnfx.kernels.linear_cpu import Layer, block_rows, multiply, prepared
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize_numba import pack_codes, unpack_codes
from gnnfx.kernels.quantized_aggregate_numba import aggregate_rows, reject_quantized_aggregate


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
    for name, operand in {
        "aggregate_row_scale": aggregate_row_scale,
        "row_scale": row_scale,
        "bias": bias,
    }.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    if channels == 0:
        return "there are no channels to sum"
    return reject_quantized_aggregate(x, scale, zero_point, rowptr, src, channels)


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
    rows, outputs = rowptr.shape[0] - 1, weight.shape[0]
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((rows, outputs), dtype)
    if out.numel():
        ready = prepared(weight, channels, weight_bits)
        multiplier, mid_zero = mid_scale * weight_scale, int(mid_zero_point)
        codes = unpack_codes(x, channels, bits)
        qparams = out_scale, out_zero_point, out_bits
        epilogue = Epilogue(row_scale, bias, None, activation, *qparams)
        size = min(rows, block_rows(rows, max(outputs, channels)))
        mid = empty((size, channels), torch.int8)
        for first in range(0, rows, size):
            count = min(size, rows - first)
            part = slice(first, first + count)
            aggregate_rows(
                codes,
                scale,
                zero_point,
                rowptr[first : first + count + 1],
                src,
                mid[:count],
                first_row=first,
                reduce=reduce,
                row_scale=None if aggregate_row_scale is None else aggregate_row_scale[part],
                self_weight=self_weight,
                out_scale=mid_scale,
                out_zero_point=mid_zero_point,
            )
            layer = Layer(ready, mid[:count], mid_zero, multiplier)
            multiply([layer], out[part], epilogue.part(part))
    return out if out_scale is None else pack_codes(out, out_bits)
