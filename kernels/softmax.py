"""segment_softmax: softmax over the edges of each destination, edges in CSR order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import edge_rows, reduce_rows, sample_graphs
from gnnfx.kernels.launch import numba_impl


def reference(logits: Tensor, rowptr: Tensor) -> Tensor:
    """exp(l - max) / (sum + 1e-16) for logits [E] or [E, H], as PyG's `softmax` defines it."""
    dst = edge_rows(rowptr)
    weights = (logits - reduce_rows(logits.detach(), rowptr, "max").index_select(0, dst)).exp()
    return weights / (reduce_rows(weights, rowptr, "sum") + 1e-16).index_select(0, dst)


def fake(logits: Tensor, rowptr: Tensor) -> Tensor:
    if logits.dim() not in (1, 2) or not logits.is_floating_point():
        raise ValueError(f"logits must be floats [E] or [E, H], got {tuple(logits.shape)}")
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def cost(logits: Tensor, rowptr: Tensor) -> Cost:
    """About four operations a logit; logits are read once and written once."""
    return Cost(4 * logits.numel(), 2 * logits.nbytes + rowptr.nbytes)


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    for _, rowptr, src in sample_graphs():
        for shape in ((), (1,), (4,), (7,)):
            logits = torch.randn(src.numel(), *shape, generator=generator) * 3
            yield logits.to(device), rowptr.to(device)


SEGMENT_SOFTMAX = register(
    OpDef(
        "segment_softmax",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.softmax_numba", "segment_softmax"),),
        differentiable=True,
    )
)
