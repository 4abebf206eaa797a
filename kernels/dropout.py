"""dropout: marks where a model drops values at random in training; in eval mode, the identity."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register


def reference(x: Tensor, p: float) -> Tensor:
    """`x`; a program in training drops each value with probability `p`, scaling up the others."""
    return x.clone(memory_format=torch.contiguous_format)


def fake(x: Tensor, p: float) -> Tensor:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must lie in [0, 1], got {p}")
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def cost(x: Tensor, p: float) -> Cost:
    """A copy, as ops do not return their inputs."""
    return Cost(0, 2 * x.nbytes)


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, float]]:
    yield torch.rand(3, 4, device=device), 0.5
    yield torch.rand(0, 4, 2, device=device), 0.0


DROPOUT = register(
    OpDef("dropout", reference, fake, cost, samples, differentiable=True, random=True)
)
