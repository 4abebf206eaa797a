"""Linear layer on integer codes: S[i, o] = sum over k of (q_x[i, k] - zero_point) * q_w[o, k].

The sum is exact.  It is then multiplied by scale * weight_scale[o] and finished with
`gnnfx.kernels.epilogue`; the result is float32 or codes.  Where x is given in float32, q_x are the
codes that `gnnfx.kernels.quantize` makes of it, without being written to memory if that pays.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import arguments, num_bytes
from gnnfx.kernels.epilogue import check_epilogue, empty_result, finish, result_bytes
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import (
    check_codes,
    code_range,
    pack,
    quantize_fake,
    quantize_reference,
    sample_qparams,
    unpack,
)


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
    """Codes `x` [N, K packed] and `weight` [O, K packed], K = `channels`, `weight_scale` [O].

    `x` may be float32 [N, K].  Weights are symmetric.  `bias` [O], `residual` [N, O],
    `row_scale` [N]: [N, O].
    """
    if x.dtype == torch.float32:
        x = quantize_reference(x, scale, zero_point, bits)
    # float64 holds every partial sum exactly and, unlike int64, has a matmul on all devices.
    steps = (unpack(x, channels, bits).int() - zero_point).double()
    total = (steps @ unpack(weight, channels, weight_bits).double().t()).float()
    return finish(
        total,
        scale * weight_scale,
        row_scale,
        None,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )


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
    if x.dtype == torch.float32:
        x = quantize_fake(x, scale, zero_point, bits)
    check_codes(x, channels, bits)
    check_weight(weight, weight_scale, channels, weight_bits)
    if x.dim() != 2:
        raise ValueError(f"x must be codes or float32 [N, K], got {tuple(x.shape)}")
    rows, width = x.shape[0], weight.shape[0]
    check_epilogue(
        rows, width, row_scale, bias, residual, activation, out_scale, out_zero_point, out_bits
    )
    return empty_result(x, rows, width, out_scale, out_bits)


def check_weight(weight: Tensor, weight_scale: Tensor, channels: int, weight_bits: int) -> None:
    """Raise ValueError unless `weight` is codes [O, channels] with a scale for each output."""
    check_codes(weight, channels, weight_bits)
    if weight.dim() != 2:
        raise ValueError(f"weight must be codes [O, K], got {tuple(weight.shape)}")
    if weight_scale.dtype != torch.float32 or tuple(weight_scale.shape) != (weight.shape[0],):
        got = f"{weight_scale.dtype} {tuple(weight_scale.shape)}"
        raise ValueError(f"weight_scale must be float32 [{weight.shape[0]}], got {got}")


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
    """A multiply-add per row, input and output, and four operations a value to round."""
    rows, width = x.shape[0], weight.shape[0]
    read = num_bytes(x, scale, zero_point, weight, weight_scale, bias, residual, row_scale)
    read += num_bytes(out_scale, out_zero_point)
    rounded = 4 * x.numel() if x.dtype == torch.float32 else 0
    flops = 2 * rows * channels * width + rounded
    return Cost(flops, read + result_bytes(rows, width, out_scale, out_bits))


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def codes(bits: int, *shape: int) -> Tensor:
        low, high = code_range(bits)
        values = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
        return pack(values, bits).to(device)

    shapes = [(7, 5, 3), (33, 64, 16), (0, 8, 4), (1, 1, 1), (19, 40, 7), (65, 128, 128)]
    shapes += [(5, 1433, 16), (300, 256, 40), (12, 2100, 5), (40, 16, 64)]
    for i, (rows, channels, width) in enumerate(shapes * 3):
        bits, weight_bits = (8, 8, 4, 8, 2)[i % 5], (8, 4, 8)[i % 3]
        out_scale, out_zero_point = sample_qparams(1.3, (0, 5, -2)[i % 3], device)
        x = codes(bits, rows, channels) if i < 2 * len(shapes) else rand(rows, channels) * 3
        yield arguments(
            reference,
            x if i != 2 * len(shapes) + 1 else x.t().contiguous().t(),
            *sample_qparams(0.043, (0, 1, code_range(bits)[i % 2])[i % 3], device),
            codes(weight_bits, width, channels),
            rand(width).abs() * 0.05,
            channels,
            bias=rand(width) if i % 4 else None,
            residual=rand(rows, width) if i % 4 == 2 else None,
            activation=("none", "relu", "none", "relu", "elu")[i % 5],
            out_scale=out_scale if i % 4 < 3 else None,
            out_zero_point=out_zero_point if i % 4 < 3 else None,
            bits=bits,
            weight_bits=weight_bits,
            out_bits=(8, 8, 8, 4, 2)[i % 5],
            row_scale=rand(rows) if i % 3 == 1 else None,
        )
    for zero_point in (127, -128):
        # The greatest sums, beyond what float32 holds exactly.
        yield arguments(
            reference,
            torch.full((3, 2100), -1 - zero_point, dtype=torch.int8, device=device),
            *sample_qparams(1.0, zero_point, device),
            torch.full((4, 2100), -128, dtype=torch.int8, device=device)
            + torch.eye(4, 2100, dtype=torch.int8, device=device),
            torch.ones(4, device=device),
            2100,
        )


QUANTIZED_LINEAR = register(
    OpDef(
        "quantized_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.linear_cpu", "quantized_linear"),
            triton_impl("gnnfx.kernels.linear_triton", "quantized_linear"),
        ),
    )
)
