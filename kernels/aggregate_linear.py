"""quantized_aggregate_linear: gather, reduce and multiply in one kernel.

Code for code what `quantized_linear(quantized_aggregate(x))` gives, with the aggregated rows
requantized to 8 bits on the way, but without ever writing them to memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels import aggregate as aggregates
from gnnfx.kernels import linear as linears
from gnnfx.kernels.aggregate import check_codes, rows_or_codes, sample_graphs
from gnnfx.kernels.launch import lazy_impl
from gnnfx.kernels.quantize import code_range, pack, packed_width


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
    """Rows [N, O] from codes x [S, K] (packed below 8 bits), a graph and weight codes [O, K]."""
    rows = aggregates.quantized_aggregate_reference(
        x, scale, zero_point, rowptr, src, channels, None, None, reduce, aggregate_row_scale,
        self_weight, None, None, "none", mid_scale, mid_zero_point, bits,
    )  # fmt: skip
    return linears.reference(
        rows, mid_scale, mid_zero_point, weight, weight_scale, channels, bias, None, activation,
        out_scale, out_zero_point, 8, weight_bits, out_bits, row_scale,
    )  # fmt: skip


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
    check_codes("x", x, channels, bits)
    check_codes("weight", weight, channels, weight_bits)
    rows = rowptr.shape[0] - 1
    return rows_or_codes(x, rows, weight.shape[0], out_scale, out_zero_point, out_bits)


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
    """The work of both parts; the rows between them move nothing."""
    edges, rows, outputs = src.numel(), rowptr.shape[0] - 1, weight.shape[0]
    inputs = (rowptr, src, weight, weight_scale, aggregate_row_scale, bias, row_scale)
    read = edges * x.shape[1] + sum(t.nbytes for t in inputs if t is not None)
    own = rows * x.shape[1] if self_weight is not None else 0
    written = 4 * outputs if out_scale is None else packed_width(outputs, out_bits)
    return Cost(edges * channels + 2 * rows * channels * outputs, read + own + rows * written)


def samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(7)

    def codes(bits: int, *shape: int, lowest: int = 0) -> Tensor:
        low, high = code_range(bits)
        made = torch.randint(low + lowest, high + 1, shape, generator=generator)
        return pack(made.to(torch.int8), bits).to(device)

    def zero(value: int) -> Tensor:
        return torch.tensor(value, dtype=torch.int32, device=device)

    def step(value: float) -> Tensor:
        return torch.tensor(value, device=device)

    for nodes, rowptr, src in sample_graphs():
        graph = (rowptr.to(device), src.to(device))
        for inputs, outputs in [(16, 5), (40, 64), (128, 32)]:
            scales = torch.rand(outputs, generator=generator).to(device) * 0.01 + 0.001
            rows = torch.rand(nodes, generator=generator).to(device)
            bias = torch.randn(outputs, generator=generator).to(device)
            for bits, weight_bits in [(8, 8), (8, 4), (4, 4)]:
                weight = codes(weight_bits, outputs, inputs, lowest=1)
                x = codes(bits, nodes, inputs)
                plain = (x, step(0.05), zero(0), *graph, inputs, step(0.6), zero(0))
                shifted = (x, step(0.05), zero(-(2 ** (bits - 1))), *graph, inputs)
                widths = (bits, weight_bits)
                yield *plain, weight, scales, *(None,) * 3, "none", None, None, *widths
                yield (*shifted, step(1.0), zero(-128), weight, scales, rows, step(1.5), bias,
                       "relu", step(0.5), zero(-128), *widths)
                yield (*plain, weight, scales, rows, None, None, "none", step(0.5), zero(0),
                       *widths, 8, "mean", rows)


QUANTIZED_AGGREGATE_LINEAR = register(
    OpDef(
        "quantized_aggregate_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(lazy_impl("blocked", "cpu", "gnnfx.kernels.aggregate_linear_cpu", "blocked"),),
    )
)
