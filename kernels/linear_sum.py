"""Sum of linear layers on integer codes: each input has its own codes, scale and weight.

y = sum over t of scale_t * weight_scale_t * S_t, where S_t is the exact sum of `quantized_linear`
on the t-th input, finished with `gnnfx.kernels.epilogue`.  It is what GraphSAGE makes of a node
and its neighbours, and RGCN of its relations.  The sums of some rows are complete before others
are begun, so that none are written to memory and read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels import linear
from gnnfx.kernels.csr import arguments, num_bytes
from gnnfx.kernels.epilogue import result_bytes
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import code_range, pack, sample_qparams


def in_turn(
    quantized_linear: Callable[..., Tensor],
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    channels: Sequence[int],
    bits: Sequence[int],
    weight_bits: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """Each layer by `quantized_linear`, its residual the sum of those before; the last finishes."""
    layers = list(zip(x, scale, zero_point, weight, weight_scale, channels, strict=True))
    widths = list(zip(bits, weight_bits, strict=True))
    for layer, (wide, weight_wide) in zip(layers[:-1], widths[:-1], strict=True):
        residual = quantized_linear(*layer, residual=residual, bits=wide, weight_bits=weight_wide)
    return quantized_linear(
        *layers[-1],
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        *widths[-1],
        out_bits,
    )


def reject_one(
    reject: Callable[..., str | None],
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    channels: Sequence[int],
    bits: Sequence[int],
    weight_bits: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> str | None:
    """What `reject`, that of `quantized_linear`, says of the first layer it does not take."""
    layers = zip(x, scale, zero_point, weight, weight_scale, channels, strict=True)
    reasons = (reject(*layer, bias, residual) for layer in layers)
    return next((reason for reason in reasons if reason is not None), None)


def reference(
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    channels: Sequence[int],
    bits: Sequence[int],
    weight_bits: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """Codes `x[t]` [N, K_t packed] and `weight[t]` [O, K_t packed], K_t = `channels[t]`.

    `x[t]` may be float32 [N, K_t].  `weight_scale[t]` and `bias` [O], `residual` [N, O]: [N, O].
    """
    terms = x, scale, zero_point, weight, weight_scale, channels, bits, weight_bits
    finished = bias, residual, activation, out_scale, out_zero_point, out_bits
    return in_turn(linear.reference, *terms, *finished)


def fake(
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    channels: Sequence[int],
    bits: Sequence[int],
    weight_bits: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    terms = x, scale, zero_point, weight, weight_scale, channels, bits, weight_bits
    if not x or len({len(term) for term in terms}) > 1:
        raise ValueError(f"every layer needs all its operands, got {[len(t) for t in terms]}")
    finished = bias, residual, activation, out_scale, out_zero_point, out_bits
    return in_turn(linear.fake, *terms, *finished)


def cost(
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    channels: Sequence[int],
    bits: Sequence[int],
    weight_bits: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Cost:
    """A multiply-add per row, input of any layer, and output; operands are read once."""
    rows, width = x[0].shape[0], weight[0].shape[0]
    read = num_bytes(*x, *scale, *zero_point, *weight, *weight_scale)
    read += num_bytes(bias, residual, out_scale, out_zero_point)
    written = result_bytes(rows, width, out_scale, out_bits)
    return Cost(2 * rows * sum(channels) * width, read + written)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def codes(bits: int, *shape: int) -> Tensor:
        low, high = code_range(bits)
        values = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
        return pack(values, bits).to(device)

    shapes = [(7, (5, 3), 3), (0, (8, 8), 4), (33, (64, 64, 16), 16), (1, (1,), 1)]
    shapes += [(300, (40, 256), 40), (70, (16, 9, 33, 64), 128), (9, (10_000, 64), 24)]
    for i, (rows, channels, width) in enumerate(shapes * 2):
        bits = [(8, 4, 8, 2)[(i + t) % 4] if i % 2 else 8 for t in range(len(channels))]
        weight_bits = [(8, 8, 4)[(i + t) % 3] for t in range(len(channels))]
        out_scale, out_zero_point = sample_qparams(1.3, (0, 5, -2)[i % 3], device)
        qparams = [sample_qparams(0.03 + 0.01 * t, t - 1, device) for t in range(len(channels))]
        yield arguments(
            reference,
            [
                rand(rows, k) if i % 5 == 4 and t else codes(b, rows, k)
                for t, (b, k) in enumerate(zip(bits, channels, strict=True))
            ],
            [s for s, _ in qparams],
            [z for _, z in qparams],
            [codes(b, width, k) for b, k in zip(weight_bits, channels, strict=True)],
            [rand(width).abs() * 0.05 for _ in channels],
            list(channels),
            bits,
            weight_bits,
            bias=rand(width) if i % 4 else None,
            residual=rand(rows, width) if i % 3 == 2 else None,
            activation=("none", "relu", "elu")[i % 3],
            out_scale=out_scale if i % 4 < 3 else None,
            out_zero_point=out_zero_point if i % 4 < 3 else None,
            out_bits=(8, 8, 8, 4)[i % 4],
        )


QUANTIZED_LINEAR_SUM = register(
    OpDef(
        "quantized_linear_sum",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.linear_cpu", "quantized_linear_sum"),
            triton_impl("gnnfx.kernels.linear_triton", "quantized_linear_sum"),
        ),
    )
)
