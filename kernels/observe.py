"""observe: marks a value whose range calibration records; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes


def reference(x: Tensor, name: str) -> Tensor:
    """`x`; calibration records its range under `name`."""
    return x.clone()


def fake(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def cost(x: Tensor, name: str) -> Cost:
    """A copy, as ops do not return their inputs."""
    return Cost(0, 2 * num_bytes(x))


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, str]]:
    yield torch.rand(3, 4, device=device), "x"


OBSERVE = register(OpDef("observe", reference, fake, cost, samples, differentiable=True))
