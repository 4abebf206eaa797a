"""Edges sorted by destination: how the ops hold a graph, and the graphs that they are tried on.

`rowptr` [N + 1] and `src` [E] are both int32 (int64 from 2**31 - 1 edges or nodes on): the edges
into node i come from `src[rowptr[i] : rowptr[i + 1]]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

REDUCES = ("sum", "mean", "max", "min")


def row_of_edge(rowptr: Tensor, num_edges: int) -> Tensor:
    """The destination of each edge, int64 [E]."""
    edges = torch.arange(num_edges, device=rowptr.device, dtype=rowptr.dtype)
    return torch.searchsorted(rowptr, edges, right=True) - 1


def degrees(rowptr: Tensor) -> Tensor:
    """Edges into each node, at least 1, float32 [N]: what a mean divides by."""
    return (rowptr[1:] - rowptr[:-1]).clamp(min=1).float()


def check_csr(rowptr: Tensor, src: Tensor) -> None:
    """Raise ValueError unless these are vectors of one integer dtype."""
    for name, index in (("rowptr", rowptr), ("src", src)):
        if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
            got = f"{index.dtype} {tuple(index.shape)}"
            raise ValueError(f"{name} must be a vector of int32 or int64, got {got}")
    if rowptr.dtype != src.dtype:
        raise ValueError(f"rowptr is {rowptr.dtype} but src is {src.dtype}")


def reject_large(rowptr: Tensor, src: Tensor) -> str | None:
    """Why kernels with 32-bit indices cannot take this graph, or None."""
    if rowptr.dtype != torch.int32 or src.dtype != torch.int32:
        return f"the kernel takes int32 indices, got {rowptr.dtype} and {src.dtype}"
    if not (rowptr.is_contiguous() and src.is_contiguous()):
        return "rowptr or src is not contiguous"
    return None


def reject_floats(**operands: Tensor | None) -> str | None:
    """Why kernels on rows of float32 cannot take these, or None."""
    for name, operand in operands.items():
        if operand is None:
            continue
        if not operand.is_contiguous():
            return f"{name} is not contiguous"
        if operand.dtype != torch.float32:
            return f"{name} is {operand.dtype}; the kernel takes float32"
    return None


def sample_graphs(device: str = "cpu") -> Iterator[tuple[int, Tensor, Tensor]]:
    """(rows of x, rowptr, src): ragged, no edges, one node, isolated nodes, hub, no nodes."""
    generator = torch.Generator().manual_seed(0)
    for num_src, num_dst, edges, busy in [
        (7, 7, 19, 7),
        (33, 33, 200, 5),
        (4, 4, 0, 4),
        (1, 1, 3, 1),
        (40, 12, 90, 12),
        (3, 3, 700, 1),
        (5, 0, 0, 0),
    ]:
        # Few sources and destinations for many edges: duplicates and self-loops are among them.
        src = torch.randint(num_src, (edges,), generator=generator)
        dst = torch.randint(max(busy, 1), (edges,), generator=generator)
        rowptr, sources, _ = sort_by_destination(src, dst, num_dst)
        yield num_src, rowptr.to(device), sources.to(device)


def sample_large_graph(device: str = "cpu") -> tuple[int, Tensor, Tensor]:
    """(rows of x, rowptr, src) of a graph that is worth several threads; a third have no edges."""
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(300, (2400,), generator=generator)
    dst = (torch.rand(2400, generator=generator) ** 3 * 200).long()
    rowptr, sources, _ = sort_by_destination(src, dst, 300)
    return 300, rowptr.to(device), sources.to(device)


def sort_by_destination(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rowptr, src, perm) by torch's stable sort."""
    dtype = index_dtype(src.shape[0], num_dst)
    perm = torch.sort(dst, stable=True).indices
    counts = torch.zeros(num_dst + 1, dtype=torch.int64, device=dst.device)
    counts.index_add_(0, dst.long() + 1, torch.ones_like(dst, dtype=torch.int64))
    return counts.cumsum(0).to(dtype), src.index_select(0, perm).to(dtype), perm.to(dtype)


def index_dtype(num_edges: int, num_nodes: int) -> torch.dtype:
    """The dtype of `rowptr` and `src`."""
    limit = 2**31 - 1
    # Symbolic sizes take the common form: an edge list of 2**31 edges fills 32 GiB by itself.
    large = statically_known_true(num_edges >= limit) or statically_known_true(num_nodes >= limit)
    return torch.int64 if large else torch.int32


def arguments(reference: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Positional arguments of a call, defaults included: the form that samples have."""
    bound = inspect.signature(reference).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args


def num_bytes(*tensors: Tensor | None) -> int:
    """Bytes of each of these that is given, read or written once."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
