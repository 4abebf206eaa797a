"""degree_cdf: how high each node's in-degree ranks in its graph.

    F(i) = share of the nodes of i's graph whose in-degree is at most that of i

The empirical distribution function that Degree-Quant's protective masks are drawn by (Tailor et
al., ICLR 2021, section 3.2): nodes of equal degree share one value, the highest get 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes


def reference(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None) -> Tensor:
    """Float32 [num_nodes] of `edge_index` [2, E]; `batch` [num_nodes] names each node's graph."""
    dst = edge_index[1].long()
    degree = torch.zeros(num_nodes, dtype=torch.int64, device=dst.device)
    degree = degree.index_add(0, dst, torch.ones_like(dst))
    if num_nodes == 0:
        return degree.float()
    graph = torch.zeros_like(degree) if batch is None else batch.long()
    # Sorting by graph first makes each graph a run of the sorted keys, by degree inside.
    width = int(degree.max()) + 1
    keys = graph * width + degree
    ordered = keys.sort().values
    first = torch.searchsorted(ordered, graph * width)
    end = torch.searchsorted(ordered, (graph + 1) * width)
    below = torch.searchsorted(ordered, keys, right=True)
    return (below - first).float() / (end - first).float()


def fake(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None) -> Tensor:
    if edge_index.dim() != 2 or edge_index.is_floating_point():
        got = f"{edge_index.dtype} {tuple(edge_index.shape)}"
        raise ValueError(f"edge_index must be integers [2, E], got {got}")
    if batch is not None and (batch.dim() != 1 or batch.is_floating_point()):
        raise ValueError(f"batch must be a vector of integers, got {batch.dtype} {batch.shape}")
    return edge_index.new_empty((num_nodes,), dtype=torch.float32)


def cost(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None) -> Cost:
    """Destinations are read and counted; each node's key is searched for in the sorted keys."""
    read = num_bytes(edge_index) // 2 + num_bytes(batch)
    return Cost(edge_index.shape[1] + num_nodes, read + 4 * num_nodes)


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, int, Tensor | None]]:
    generator = torch.Generator().manual_seed(0)
    for nodes, edges in [(7, 19), (4, 0), (1, 3), (0, 0), (300, 2000)]:
        index = torch.randint(max(nodes, 1), (2, edges), generator=generator).to(device)
        yield index, nodes, None
        yield index.int(), nodes, (torch.arange(nodes, device=device) // 3)


DEGREE_CDF = register(OpDef("degree_cdf", reference, fake, cost, samples))
