"""dense_to_csr: the values of a matrix that are not zero, row after row.

A linear layer of a bag of words is then an `aggregate` of rows of its transposed weight, whose
gradient is a sum over the same values; `gnnfx.backend.training_graph` trains that way.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.launch import numba_impl


def reference(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 `x` [N, K]: rowptr int32 [N + 1], columns int32 [D] and values float32 [D]."""
    rows, columns = x.nonzero(as_tuple=True)
    counts = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=x.device)
    counts.index_add_(0, rows + 1, torch.ones_like(rows))
    return counts.cumsum(0).int(), columns.int(), x[rows, columns]


def fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if x.dim() != 2 or x.dtype != torch.float32:
        raise ValueError(f"x must be float32 [N, K], got {x.dtype} {tuple(x.shape)}")
    found = torch.library.get_ctx().new_dynamic_size()
    rowptr = x.new_empty((x.shape[0] + 1,), dtype=torch.int32)
    return rowptr, x.new_empty((found,), dtype=torch.int32), x.new_empty((found,))


def cost(x: Tensor) -> Cost:
    """Reading x; how much is written depends on the values and is not counted."""
    return Cost(x.numel(), num_bytes(x) + 4 * (x.shape[0] + 1))


def samples(device: str = "cpu") -> Iterator[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in [(40, 100), (33, 64), (1, 5), (0, 8), (3, 0), (200, 1433), (7, 129)]:
        for density in (0.0, 0.02, 0.5, 1.0):
            kept = torch.rand(rows, columns, generator=generator) < density
            yield ((torch.randn(rows, columns, generator=generator) * kept).to(device),)
    yield (torch.tensor([[-0.0, 1e-45, 1.0], [float("inf"), 0.0, 0.0]]).to(device),)


DENSE_TO_CSR = register(
    OpDef(
        "dense_to_csr",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.dense_to_csr_numba", "dense_to_csr"),),
        sized_by_values=True,
    )
)
