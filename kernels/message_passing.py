"""The canonical message-passing ops: gather, scatter and edge_softmax over an edge list.

The front end raises every spelling of these to one form, and the passes lower them to kernels
over CSR (`aggregate`, `segment_softmax`, `attend_gat`); what stays runs as written here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, accept, register
from gnnfx.kernels.memory import empty

_TORCH_REDUCE = {"sum": "sum", "mean": "mean", "max": "amax", "min": "amin", "mul": "prod"}


def gather_reference(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` [N, ...] chosen by `index` [E]: [E, ...]."""
    return x.index_select(0, index)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    rows = empty((index.shape[0], *x.shape[1:]), x.dtype)
    return torch.index_select(x, 0, index, out=rows)


def gather_fake(x: Tensor, index: Tensor) -> Tensor:
    if index.dim() != 1 or index.is_floating_point():
        raise ValueError(f"index must be a vector of integers, got {index.dtype} {index.shape}")
    return x.new_empty((index.shape[0], *x.shape[1:]))


def gather_cost(x: Tensor, index: Tensor) -> Cost:
    row = x.element_size() * int(x[0].numel() if x.shape[0] else 0)
    edges = index.shape[0]
    return Cost(0, edges * (2 * row + index.element_size()), gathered=edges * row)


def gather_samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    for nodes, edges, shape in [(7, 19, (5,)), (4, 0, (8,)), (6, 11, (2, 3)), (5, 9, ())]:
        yield torch.rand(nodes, *shape, device=device), torch.arange(edges, device=device) % nodes


def scatter_reference(messages: Tensor, index: Tensor, num_rows: int, reduce: str) -> Tensor:
    """Reduce `messages` [E, ...] into [num_rows, ...] by `index` [E]; empty rows are 0."""
    shape = (num_rows, *messages.shape[1:])
    if reduce == "sum":
        return messages.new_zeros(shape).index_add(0, index, messages)
    wide = index.view(-1, *(1,) * (messages.dim() - 1)).expand_as(messages)
    out = messages.new_zeros(shape)
    return out.scatter_reduce(0, wide, messages, _TORCH_REDUCE[reduce], include_self=False)


def scatter_fake(messages: Tensor, index: Tensor, num_rows: int, reduce: str) -> Tensor:
    if reduce not in _TORCH_REDUCE:
        raise ValueError(f"reduce must be one of {sorted(_TORCH_REDUCE)}, got {reduce!r}")
    if index.dim() != 1 or index.is_floating_point():
        raise ValueError(f"index must be a vector of integers, got {index.dtype} {index.shape}")
    torch._check(
        messages.shape[0] == index.shape[0],
        lambda: f"index must have one entry a message, got {index.shape} for {messages.shape}",
    )
    return messages.new_empty((num_rows, *messages.shape[1:]))


def scatter_cost(messages: Tensor, index: Tensor, num_rows: int, reduce: str) -> Cost:
    """One operation per edge and channel; messages are read once, rows written once."""
    channels = messages.numel() // max(messages.shape[0], 1)
    moved = messages.numel() * messages.element_size() + index.numel() * index.element_size()
    return Cost(messages.numel(), moved + num_rows * channels * messages.element_size())


def scatter_samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int, str]]:
    for messages, index in gather_samples(device):
        for reduce in _TORCH_REDUCE:
            yield messages[index], (index * 3) % 5, 6, reduce


def edge_softmax_reference(logits: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Softmax of `logits` [E, ...] over the edges that share an `index`, as PyG defines it."""
    highest = scatter_reference(logits.detach(), index, num_rows, "max")
    weights = (logits - highest.index_select(0, index)).exp()
    total = scatter_reference(weights, index, num_rows, "sum") + 1e-16
    return weights / total.index_select(0, index)


def _edge_softmax(logits: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """As the reference, in two buffers."""
    highest = scatter_reference(logits, index, num_rows, "max")
    weights = _gather(highest, index)
    torch.sub(logits, weights, out=weights).exp_()
    total = scatter_reference(weights, index, num_rows, "sum").add_(1e-16)
    return weights.div_(_gather(total, index))


def edge_softmax_fake(logits: Tensor, index: Tensor, num_rows: int) -> Tensor:
    if index.dim() != 1 or index.is_floating_point():
        raise ValueError(f"index must be a vector of integers, got {index.dtype} {index.shape}")
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def edge_softmax_cost(logits: Tensor, index: Tensor, num_rows: int) -> Cost:
    """About four operations an edge and head; logits are read and as many values are written."""
    moved = 2 * logits.numel() * logits.element_size() + index.numel() * index.element_size()
    return Cost(flops=4 * logits.numel(), bytes=moved)


def edge_softmax_samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int]]:
    for messages, index in gather_samples(device):
        yield messages[index], (index * 3) % 5, 6


GATHER = register(
    OpDef(
        "gather",
        gather_reference,
        gather_fake,
        gather_cost,
        gather_samples,
        impls=(Impl("torch", "cpu", _gather, accept),),
        differentiable=True,
    )
)
SCATTER = register(
    OpDef(
        "scatter",
        scatter_reference,
        scatter_fake,
        scatter_cost,
        scatter_samples,
        differentiable=True,
    )
)
EDGE_SOFTMAX = register(
    OpDef(
        "edge_softmax",
        edge_softmax_reference,
        edge_softmax_fake,
        edge_softmax_cost,
        edge_softmax_samples,
        impls=(Impl("torch", "cpu", _edge_softmax, accept),),
        differentiable=True,
    )
)
