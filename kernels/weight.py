"""dequantize_weight: float weights of symmetric codes with one scale an output channel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.quantize import code_range, pack, unpack


def reference(codes: Tensor, scale: Tensor, channels: int, bits: int = 8) -> Tensor:
    """Weights [O, channels] of codes [O, channels] (packed below 8 bits) and scale [O]."""
    return unpack(codes, channels, bits).float() * scale[:, None]


def fake(codes: Tensor, scale: Tensor, channels: int, bits: int = 8) -> Tensor:
    if codes.dim() != 2 or scale.shape != codes.shape[:1]:
        raise ValueError(
            f"scale must have one entry a row of codes, got {tuple(scale.shape)} for "
            f"{tuple(codes.shape)}"
        )
    return codes.new_empty((codes.shape[0], channels), dtype=torch.float32)


def cost(codes: Tensor, scale: Tensor, channels: int, bits: int = 8) -> Cost:
    """One multiplication a weight; codes are read, floats written."""
    values = codes.shape[0] * channels
    return Cost(values, codes.nbytes + scale.nbytes + 4 * values)


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int, int]]:
    for bits in (8, 4, 2):
        low, high = code_range(bits)
        for shape in ((3, 5), (8, 16), (1, 1)):
            codes = torch.arange(shape[0] * shape[1]).view(shape) % (high - low + 1) + low
            scale = torch.rand(shape[0], device=device) + 0.01
            yield pack(codes.to(torch.int8), bits).to(device), scale, shape[1], bits


def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """The step [O] that just covers each output channel of float `weight` [O, ...]."""
    largest: Tensor = weight.detach().float().flatten(1).abs().amax(1)
    covered = largest.clamp(min=torch.finfo(torch.float32).tiny)
    return covered / float(2 ** (bits - 1) - 1)


def weight_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Symmetric int8 codes, not packed, of `weight` [O, K] with steps `scale` [O]."""
    qmax = 2 ** (bits - 1) - 1
    steps: Tensor = weight.float() / scale[:, None]
    return steps.round().clamp(-qmax, qmax).to(torch.int8)


DEQUANTIZE_WEIGHT = register(OpDef("dequantize_weight", reference, fake, cost, samples))
