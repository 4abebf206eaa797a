"""observe: marks a value whose range is recorded, and in training rounded; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes


def reference(
    x: Tensor,
    name: str,
    rank: Tensor | None = None,
    owner: Tensor | None = None,
    bits: int = 8,
    bucket: Tensor | None = None,
) -> Tensor:
    """`x` [rows, ...]; calibration and training record its range under `name`.

    It will be read as codes of `bits` bits.

    In training, rows may be protected from rounding, by the `rank` [N] of their node's in-degree;
    `owner` [rows] names the node of each row where rows are edges.  `bucket` [rows] names the
    bucket of each row's in-degree where buckets have ranges of their own.
    """
    return x.clone()


def fake(
    x: Tensor,
    name: str,
    rank: Tensor | None = None,
    owner: Tensor | None = None,
    bits: int = 8,
    bucket: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x)


def cost(
    x: Tensor,
    name: str,
    rank: Tensor | None = None,
    owner: Tensor | None = None,
    bits: int = 8,
    bucket: Tensor | None = None,
) -> Cost:
    """A copy, as ops do not return their inputs."""
    return Cost(0, 2 * num_bytes(x))


def samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    x = torch.rand(3, 4, device=device)
    yield x, "x", None, None, 8
    yield x, "x", None, None, 8, torch.tensor([0, 3, 1], device=device)
    yield x, "x", torch.rand(2, device=device), torch.tensor([0, 1, 0], device=device), 4


OBSERVE = register(
    OpDef("observe", reference, fake, cost, samples, differentiable=True, random=True)
)
