"""sparse_linear: a linear layer whose input is mostly zeros, as bags of words are.

    y[i] = bias + sum over the k with x[i, k] != 0 of x[i, k] * weight_t[k]

The input stays an ordinary dense tensor; reading it once finds its non-zeros, and only those
are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.launch import numba_impl


def reference(x: Tensor, weight_t: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows [N, O] of x [N, K], the transposed weight [K, O] and bias [O], all float32."""
    return linear(x, weight_t.t(), bias)


def fake(x: Tensor, weight_t: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dim() != 2 or weight_t.dim() != 2 or weight_t.shape[0] != x.shape[1]:
        raise ValueError(
            f"x must be [N, K] and weight_t [K, O], got {tuple(x.shape)} and "
            f"{tuple(weight_t.shape)}"
        )
    return x.new_empty((x.shape[0], weight_t.shape[1]))


def cost(x: Tensor, weight_t: Tensor, bias: Tensor | None = None) -> Cost:
    """Reading x finds its zeros; what they save depends on the values and is not counted."""
    outputs = x.shape[0] * weight_t.shape[1]
    return Cost(2 * outputs * x.shape[1], num_bytes(x, weight_t, bias) + 4 * outputs)


# Widths that are blocks, have a rest, or are too small for one; more values than fit one list.
_SHAPES = [(40, 100, 16), (33, 64, 7), (1, 5, 4), (0, 8, 4), (50, 1433, 64), (3, 12000, 5)]


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(8)
    for rows, inputs, outputs in _SHAPES:
        dense = torch.randn(rows, inputs, generator=generator)
        weight_t = torch.randn(inputs, outputs, generator=generator).to(device)
        bias = torch.randn(outputs, generator=generator).to(device)
        for density in (0.02, 0.1, 1.0):
            kept = torch.rand(rows, inputs, generator=generator) < density
            x = (dense * kept).to(device)
            yield x, weight_t, None
            yield x, weight_t, bias


SPARSE_LINEAR = register(
    OpDef(
        "sparse_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.sparse_linear_numba", "sparse_linear"),),
        differentiable=True,
    )
)
