"""seeded_dropout: dropout whose draws are a function of a seed and each value's place.

    y[i] = x[i] / (1 - p) if hash(i, key) >= p * 2**32, else 0

so nothing is kept for the backward pass, which drops the same places of the gradient, and threads
draw without waiting for each other.  The hash is two rounds of lowbias32 (Wellons, "Prospecting for
hash functions", 2018), the key what SplitMix64 (Steele et al., OOPSLA 2014) makes of the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.launch import numba_impl

FIRST_FACTOR, SECOND_FACTOR = 0x7FEB352D, 0x846CA68B
_LOW, _ALL = 2**32 - 1, 2**64 - 1


def _mixed(bits: Tensor) -> Tensor:
    bits = bits ^ (bits >> 16)
    bits = (bits * FIRST_FACTOR) & _LOW
    bits = bits ^ (bits >> 15)
    bits = (bits * SECOND_FACTOR) & _LOW
    return bits ^ (bits >> 16)


def key_of(seed: int) -> int:
    """64 bits, all of which depend on all bits of the seed."""
    key = (seed + 0x9E3779B97F4A7C15) & _ALL
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _ALL
    return key ^ (key >> 31)


def least_kept(p: float) -> int:
    """The hash from which on values are kept."""
    return int(p * 2**32)


def reference(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """`x` float32 of any shape, `seed` int64 0-d: values of `x` over 1 - p, or 0, of its shape."""
    places = torch.arange(x.numel(), device=x.device) & _LOW
    key = key_of(int(seed))
    bits = _mixed(_mixed(places ^ (key & _LOW)) ^ (key >> 32))
    kept = (bits >= least_kept(p)).view(x.shape)
    return torch.where(kept, x * (1 / (1 - p) if p < 1 else 0.0), 0.0)


def fake(x: Tensor, p: float, seed: Tensor) -> Tensor:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must lie in [0, 1], got {p}")
    if x.dtype != torch.float32 or seed.dtype != torch.int64 or seed.dim():
        got = f"{x.dtype} and {seed.dtype} {tuple(seed.shape)}"
        raise ValueError(f"x must be float32 and seed a number in int64, got {got}")
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def cost(x: Tensor, p: float, seed: Tensor) -> Cost:
    """Twenty operations a value; `x` is read and as much is written."""
    return Cost(20 * x.numel(), 2 * x.nbytes)


def gradient(
    grad: Tensor, result: None, needed: Sequence[bool], x: Tensor, p: float, seed: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient, dropped where the values were."""
    return torch.ops.gnnfx.seeded_dropout(grad.contiguous(), p, seed), None, None


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, float, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for shape in [(3, 4), (0, 4), (), (1,), (70, 33), (5, 2, 8), (9000, 4)]:
        for p in (0.0, 0.25, 0.5, 1.0):
            x = torch.randn(shape, generator=generator).to(device)
            seed = torch.randint(-(2**63), 2**63 - 1, (), generator=generator)
            yield x, p, seed.to(device)


SEEDED_DROPOUT = register(
    OpDef(
        "seeded_dropout",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.seeded_dropout_numba", "seeded_dropout"),),
        differentiable=True,
        gradient=gradient,
    )
)
