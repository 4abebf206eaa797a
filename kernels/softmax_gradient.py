"""segment_softmax_gradient: back through `segment_softmax`, from its result alone.

dl[e] = p[e] * (g[e] - sum of p[f] * g[f] over the edges f into the destination of e)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels import softmax
from gnnfx.kernels.csr import num_bytes, row_of_edge
from gnnfx.kernels.launch import numba_impl


def reference(grad: Tensor, shares: Tensor, rowptr: Tensor) -> Tensor:
    """float32 `grad` and `shares` [E] or [E, H], edges sorted by destination: of the same shape."""
    rows = row_of_edge(rowptr, grad.shape[0])
    mean = grad.new_zeros((rowptr.shape[0] - 1, *grad.shape[1:]))
    mean = mean.index_add(0, rows, shares * grad)
    return (grad - mean.index_select(0, rows)) * shares


def fake(grad: Tensor, shares: Tensor, rowptr: Tensor) -> Tensor:
    if grad.shape != shares.shape:
        raise ValueError(f"grad must be {tuple(shares.shape)} as shares, got {tuple(grad.shape)}")
    return softmax.fake(shares, rowptr)


def cost(grad: Tensor, shares: Tensor, rowptr: Tensor) -> Cost:
    """Four operations an edge and head; two values are read for each and one is written."""
    return Cost(4 * grad.numel(), num_bytes(grad, shares, shares, rowptr))


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for logits, rowptr in softmax.samples(device):
        grad = torch.randn(logits.shape, generator=generator).to(device)
        yield grad, softmax.reference(logits, rowptr), rowptr


SEGMENT_SOFTMAX_GRADIENT = register(
    OpDef(
        "segment_softmax_gradient",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.softmax_numba", "segment_softmax_gradient"),),
    )
)
