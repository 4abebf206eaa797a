"""Softmax over the edges of each destination: exp(l - max) / (sum + 1e-16), as PyG has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes, row_of_edge, sample_graphs, sample_large_graph
from gnnfx.kernels.launch import numba_impl, triton_impl


def reference(logits: Tensor, rowptr: Tensor) -> Tensor:
    """float32 `logits` [E] or [E, H], edges sorted by destination: same shape."""
    rows = row_of_edge(rowptr, logits.shape[0])
    shape = (rowptr.shape[0] - 1, *logits.shape[1:])
    wide = rows.view(-1, *(1,) * (logits.dim() - 1)).expand_as(logits)
    highest = logits.new_zeros(shape).scatter_reduce(
        0, wide, logits.detach(), "amax", include_self=False
    )
    weights = (logits - highest.index_select(0, rows)).exp()
    total = logits.new_zeros(shape).index_add(0, rows, weights) + 1e-16
    return weights / total.index_select(0, rows)


def fake(logits: Tensor, rowptr: Tensor) -> Tensor:
    if logits.dtype != torch.float32 or logits.dim() not in (1, 2):
        got = f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(f"logits must be float32 [E] or [E, H], got {got}")
    return logits.new_empty(logits.shape)


def cost(logits: Tensor, rowptr: Tensor) -> Cost:
    """About four operations an edge and head; logits are read and as many values are written."""
    return Cost(flops=4 * logits.numel(), bytes=num_bytes(logits, logits, rowptr))


def gradient(
    grad: Tensor, shares: Tensor, needed: Sequence[bool], logits: Tensor, rowptr: Tensor
) -> tuple[Tensor | None, ...]:
    return torch.ops.gnnfx.segment_softmax_gradient(grad.contiguous(), shares, rowptr), None


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for i, (_, rowptr, src) in enumerate([*sample_graphs(), sample_large_graph()]):
        for shape in [(), (1,), (4,), (8,), (3,)]:
            logits = torch.randn(src.shape[0], *shape, generator=generator) * (1, 20, 90)[i % 3]
            yield logits.to(device), rowptr.to(device)


SEGMENT_SOFTMAX = register(
    OpDef(
        "segment_softmax",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.softmax_numba", "segment_softmax"),
            triton_impl("gnnfx.kernels.softmax_triton", "segment_softmax"),
        ),
        differentiable=True,
        gradient=gradient,
        reads_result=lambda *_: True,
    )
)
