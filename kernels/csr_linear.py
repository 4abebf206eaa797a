"""csr_linear: a linear layer whose weight is mostly zeros, as after pruning single weights.

    y[i, o] = bias[o] + sum over the non-zeros k of row o of x[i, k] * weight[o, k]

The weight is kept as compressed sparse rows: row o has values[rowptr[o]:rowptr[o + 1]] in the
columns of the same places.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.launch import numba_impl


def reference(
    x: Tensor, rowptr: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Rows [N, O] of x [N, K] and the weight's rowptr [O + 1], columns and values [nonzero]."""
    counts = rowptr.diff().long()
    rows = torch.repeat_interleave(
        torch.arange(len(counts), device=x.device), counts, output_size=values.shape[0]
    )
    weight = values.new_zeros((len(counts), x.shape[1])).index_put((rows, columns.long()), values)
    return linear(x, weight, bias)


def fake(
    x: Tensor, rowptr: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    if x.dim() != 2 or rowptr.dim() != 1 or columns.shape != values.shape:
        raise ValueError(
            f"x must be [N, K], rowptr [O + 1] and columns as long as values, got "
            f"{tuple(x.shape)}, {tuple(rowptr.shape)}, {tuple(columns.shape)} and "
            f"{tuple(values.shape)}"
        )
    return x.new_empty((x.shape[0], rowptr.shape[0] - 1))


def cost(
    x: Tensor, rowptr: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None = None
) -> Cost:
    """A multiply-add for each row and each weight there is; everything moves once."""
    written = 4 * x.shape[0] * (rowptr.shape[0] - 1)
    read = num_bytes(x, rowptr, columns, values, bias)
    return Cost(2 * x.shape[0] * values.shape[0], read + written)


def compressed_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rowptr [O + 1], columns [nonzero], values [nonzero]) of a weight [O, K], indices int32."""
    there = weight != 0
    rowptr = torch.zeros(weight.shape[0] + 1, dtype=torch.int32, device=weight.device)
    rowptr[1:] = there.sum(1).cumsum(0)
    return rowptr, there.nonzero()[:, 1].int(), weight[there]


def samples(
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(10)
    for rows, inputs, outputs in [(7, 16, 5), (1, 1, 1), (0, 8, 4), (130, 33, 40), (64, 130, 16)]:
        x = torch.randn(rows, inputs, generator=generator).to(device)
        bias = torch.randn(outputs, generator=generator).to(device)
        for density in (0.0, 0.1, 1.0):
            kept = torch.rand(outputs, inputs, generator=generator) < density
            weight = torch.randn(outputs, inputs, generator=generator) * kept
            parts = compressed_rows(weight.to(device))
            yield x, *parts, None
            yield x, *parts, bias


CSR_LINEAR = register(
    OpDef(
        "csr_linear",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.csr_linear_numba", "csr_linear"),),
        differentiable=True,
    )
)
