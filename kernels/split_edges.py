"""The edge lists of single edge types, taken apart in one sweep.

split_edges(edges, edge_type, [0, 1]) = edges[:, edge_type == 0], edges[:, edge_type == 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.launch import numba_impl


def reference(edges: Tensor, edge_type: Tensor, types: Sequence[int]) -> list[Tensor]:
    """`edges` [2, E] int64, `edge_type` [E] int64: a list of edges [2, E_t] for each of `types`."""
    return [edges[:, edge_type == wanted] for wanted in types]


def fake(edges: Tensor, edge_type: Tensor, types: Sequence[int]) -> list[Tensor]:
    for name, ids, dims in (("edges", edges, 2), ("edge_type", edge_type, 1)):
        if ids.dtype != torch.int64 or ids.dim() != dims:
            got = f"{ids.dtype} {tuple(ids.shape)}"
            raise ValueError(f"{name} must be int64 with {dims} dimensions, got {got}")
    rows = edges.shape[0]
    sizes = [torch.library.get_ctx().new_dynamic_size() for _ in types]
    return [edges.new_empty((rows, size)) for size in sizes]


def cost(edges: Tensor, edge_type: Tensor, types: Sequence[int]) -> Cost:
    """Types are read twice, to count and to place; edges are read and written once."""
    return Cost(edge_type.shape[0], 2 * num_bytes(edge_type) + 2 * num_bytes(edges))


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    for count, most, types in [
        (0, 2, [0, 1]),
        (1, 1, [0]),
        (17, 4, [2, 0]),
        (300, 5, [0, 1, 2, 3, 4]),
        (200_000, 8, [7, 1, 3, 9]),
    ]:
        edges = torch.randint(1000, (2, count), generator=generator)
        edge_type = torch.randint(-1, most, (count,), generator=generator)
        yield edges.to(device), edge_type.to(device), types


SPLIT_EDGES = register(
    OpDef(
        "split_edges",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.split_edges_numba", "split_edges"),),
        sized_by_values=True,
    )
)
