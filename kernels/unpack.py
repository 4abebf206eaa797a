"""unpack: packed codes one a byte, for ops that read rows in parts (attention heads)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.quantize import BITS, check_codes, code_range, pack
from gnnfx.kernels.quantize import unpack as unpack_codes


def reference(codes: Tensor, channels: int, bits: int) -> Tensor:
    """int8 codes [..., channels] of `codes` [..., C packed]."""
    return unpack_codes(codes, channels, bits).clone()


def fake(codes: Tensor, channels: int, bits: int) -> Tensor:
    check_codes(codes, channels, bits)
    return codes.new_empty((*codes.shape[:-1], channels), dtype=torch.int8)


def cost(codes: Tensor, channels: int, bits: int) -> Cost:
    """Codes are read packed and written one a byte; a shift and a mask for each."""
    values = codes.numel() // max(codes.shape[-1], 1) * channels
    return Cost(2 * values, codes.nbytes + values)


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, int, int]]:
    generator = torch.Generator().manual_seed(0)
    for bits in BITS:
        low, high = code_range(bits)
        for shape in ((7, 5), (1, 1), (0, 8), (9, 16)):
            values = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
            yield pack(values, bits).to(device), shape[-1], bits


UNPACK = register(OpDef("unpack", reference, fake, cost, samples))
