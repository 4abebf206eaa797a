"""quantized_linear: an integer matrix product with the epilogue of the layer it came from.

    acc[i, o] = sum over k of (x[i, k] - zero_point) * weight[o, k]           exact, int32
    y[i, o]   = act(acc * scale * weight_scale[o] * row_scale[i] + bias[o] + residual[i, o])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import ACTIVATIONS, check_codes, epilogue, rows_or_codes
from gnnfx.kernels.launch import lazy_impl
from gnnfx.kernels.quantize import code_range, pack, packed_width, to_codes, unpack


def reference(
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
    """Rows [N, O] of codes x [N, K] and symmetric weight codes [O, K], both packed below 8 bits."""
    centered = unpack(x, channels, bits).double() - zero_point
    # Products of 8-bit codes stay below 2**16 and sums far below 2**53: exact in float64.
    acc = (centered @ unpack(weight, channels, weight_bits).double().T).float()
    step = scale * weight_scale
    y = acc * step if row_scale is None else acc * (step * row_scale[:, None])
    y = epilogue(y, bias, residual, activation)
    if out_scale is None:
        return y
    return pack(to_codes(y, out_scale, out_zero_point, out_bits), out_bits)  # type: ignore[arg-type]


def fake(
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
    check_codes("x", x, channels, bits)
    check_codes("weight", weight, channels, weight_bits)
    if weight_scale.shape != weight.shape[:1]:
        raise ValueError(
            f"weight_scale must be [{weight.shape[0]}], got {tuple(weight_scale.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    return rows_or_codes(x, x.shape[0], weight.shape[0], out_scale, out_zero_point, out_bits)


def cost(
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
) -> Cost:
    """A multiply-add for each row, input and output channel; everything moves once."""
    rows, outputs = x.shape[0], weight.shape[0]
    inputs = (x, weight, weight_scale, bias, residual, row_scale)
    read = sum(t.nbytes for t in inputs if t is not None)
    written = 4 * outputs if out_scale is None else packed_width(outputs, out_bits)
    return Cost(2 * rows * channels * outputs, read + rows * written)


def samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(6)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def codes(bits: int, *shape: int, lowest: int = 0) -> Tensor:
        low, high = code_range(bits)
        made = torch.randint(low + lowest, high + 1, shape, generator=generator)
        return pack(made.to(torch.int8), bits).to(device)

    def zero(value: int) -> Tensor:
        return torch.tensor(value, dtype=torch.int32, device=device)

    step, out = torch.tensor(0.02, device=device), torch.tensor(0.5, device=device)
    for rows, inputs, outputs in [(7, 16, 5), (1, 1, 1), (0, 8, 4), (70, 33, 40), (130, 1433, 16)]:
        scales = rand(outputs).abs() * 0.01 + 0.001
        bias, residual, row_scale = rand(outputs), rand(rows, outputs), rand(rows)
        for bits in (8, 4):
            for weight_bits in (8, 4):
                weight = codes(weight_bits, outputs, inputs, lowest=1)
                for zero_point in (0, -(2 ** (bits - 1))):
                    x = codes(bits, rows, inputs)
                    head = (x, step, zero(zero_point), weight, scales, inputs)
                    widths = (bits, weight_bits)
                    yield *head, None, None, "none", None, None, *widths
                    yield *head, bias, residual, "relu", None, None, *widths
                    yield *head, bias, None, "relu", out, zero(-128), *widths
                    yield *head, None, None, "none", out, zero(0), *widths, 8, row_scale
                    yield *head, bias, None, "none", out, zero(1), *widths, 4


QUANTIZED_LINEAR = register(
    OpDef(
        "quantized_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(
            lazy_impl("onednn", "cpu", "gnnfx.kernels.linear_cpu", "onednn"),
            lazy_impl("exact", "cpu", "gnnfx.kernels.linear_cpu", "exact"),
        ),
    )
)
