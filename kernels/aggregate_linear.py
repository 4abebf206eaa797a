"""Aggregate, then a linear layer, without the aggregated rows in memory.

    mid = quantized_aggregate(x, ..., out_scale=mid_scale, out_zero_point=mid_zero_point)
    y = quantized_linear(mid, mid_scale, mid_zero_point, weight, weight_scale, ...)

code for code; `mid` has 8 bits.  `aggregate_row_scale` [N] and `self_weight` belong to the first,
`row_scale` [N], `bias` [O] and `activation` to the second.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels import linear
from gnnfx.kernels.aggregate import (
    quantized_aggregate_cost,
    quantized_aggregate_fake,
    quantized_aggregate_reference,
)
from gnnfx.kernels.csr import arguments, sample_graphs, sample_large_graph
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import code_range, pack, sample_qparams


def reference(
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
    """Codes `x` [S, C packed], C = `channels`, `weight` codes [O, C packed]: [N, O]."""
    mid = quantized_aggregate_reference(
        x,
        scale,
        zero_point,
        rowptr,
        src,
        channels,
        reduce=reduce,
        row_scale=aggregate_row_scale,
        self_weight=self_weight,
        out_scale=mid_scale,
        out_zero_point=mid_zero_point,
        bits=bits,
    )
    return linear.reference(
        mid,
        mid_scale,
        mid_zero_point,
        weight,
        weight_scale,
        channels,
        bias,
        None,
        activation,
        out_scale,
        out_zero_point,
        8,
        weight_bits,
        out_bits,
        row_scale,
    )


def fake(
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
    mid = quantized_aggregate_fake(
        x,
        scale,
        zero_point,
        rowptr,
        src,
        channels,
        reduce=reduce,
        row_scale=aggregate_row_scale,
        self_weight=self_weight,
        out_scale=mid_scale,
        out_zero_point=mid_zero_point,
        bits=bits,
    )
    return linear.fake(
        mid,
        mid_scale,
        mid_zero_point,
        weight,
        weight_scale,
        channels,
        bias,
        None,
        activation,
        out_scale,
        out_zero_point,
        8,
        weight_bits,
        out_bits,
        row_scale,
    )


def cost(
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
) -> Cost:
    """What the two ops cost without writing and reading the rows between them."""
    rows = rowptr.shape[0] - 1
    first = quantized_aggregate_cost(
        x,
        scale,
        zero_point,
        rowptr,
        src,
        channels,
        reduce=reduce,
        row_scale=aggregate_row_scale,
        self_weight=self_weight,
        out_scale=mid_scale,
        out_zero_point=mid_zero_point,
        bits=bits,
    )
    second = linear.cost(
        x.new_empty((rows, channels), dtype=torch.int8),
        mid_scale,
        mid_zero_point,
        weight,
        weight_scale,
        channels,
        bias,
        None,
        activation,
        out_scale,
        out_zero_point,
        8,
        weight_bits,
        out_bits,
        row_scale,
    )
    # Written and read by the two ops, and the qparams between them, which are read once here.
    between = 2 * rows * channels + mid_scale.element_size() + mid_zero_point.element_size()
    moved = first.bytes + second.bytes - between
    return Cost(first.flops + second.flops, moved, first.gathered)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def codes(bits: int, *shape: int) -> Tensor:
        low, high = code_range(bits)
        values = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
        return pack(values, bits).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    widths = [(5, 3), (64, 64), (7, 16), (1, 1), (40, 5), (128, 128), (16, 40), (256, 64), (32, 7)]
    for i, (channels, width) in enumerate(widths * 2):
        rows, rowptr, src = graphs[i % len(graphs)]
        num_rows = rowptr.shape[0] - 1
        bits, weight_bits = (8, 8, 4, 8, 2)[i % 5], (8, 4, 8)[i % 3]
        out_scale, out_zero_point = sample_qparams(2.1, (0, 5, -2)[i % 3], device)
        yield arguments(
            reference,
            codes(bits, rows, channels),
            *sample_qparams(0.043, (0, 1, code_range(bits)[i % 2])[i % 3], device),
            rowptr,
            src,
            channels,
            *sample_qparams(0.11, (0, 4)[i % 2], device),
            codes(weight_bits, width, channels),
            rand(width).abs() * 0.05,
            aggregate_row_scale=rand(num_rows) if i % 3 == 0 else None,
            self_weight=rand(1)[0] if i % 5 == 1 and rows >= num_rows else None,
            bias=rand(width) if i % 4 else None,
            activation="relu" if i % 2 else "none",
            out_scale=out_scale if i % 4 < 3 else None,
            out_zero_point=out_zero_point if i % 4 < 3 else None,
            bits=bits,
            weight_bits=weight_bits,
            out_bits=(8, 8, 8, 4, 2)[i % 5],
            reduce=("sum", "mean", "sum", "max", "min")[(i // 2) % 5],
            row_scale=rand(num_rows) if i % 3 == 1 else None,
        )


QUANTIZED_AGGREGATE_LINEAR = register(
    OpDef(
        "quantized_aggregate_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_linear_cpu", "quantized_aggregate_linear"),
            triton_impl("gnnfx.kernels.aggregate_linear_triton", "quantized_aggregate_linear"),
        ),
    )
)
