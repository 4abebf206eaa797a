"""What is asked of in-degrees: how high a node ranks in its graph, and which bucket it is in.

    degree_cdf      F(i) = share of the nodes of i's graph whose in-degree is at most that of i
    degree_bucket   B(i) = number of binary digits of the in-degree of i, at most 15

F is the empirical distribution function that Degree-Quant's protective masks are drawn by (Tailor
et al., ICLR 2021, section 3.2): nodes of equal degree share one value, the highest get 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes

DEGREE_BUCKETS = 16


def _in_degree(edge_index: Tensor, num_nodes: int) -> Tensor:
    dst = edge_index[1].long()
    degree = torch.zeros(num_nodes, dtype=torch.int64, device=dst.device)
    return degree.index_add(0, dst, torch.ones_like(dst))


def reference(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None) -> Tensor:
    """Float32 [num_nodes] of `edge_index` [2, E]; `batch` [num_nodes] names each node's graph."""
    degree = _in_degree(edge_index, num_nodes)
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


def _check_edge_index(edge_index: Tensor) -> None:
    if edge_index.dim() != 2 or edge_index.is_floating_point():
        got = f"{edge_index.dtype} {tuple(edge_index.shape)}"
        raise ValueError(f"edge_index must be integers [2, E], got {got}")


def fake(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None) -> Tensor:
    _check_edge_index(edge_index)
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


def bucket_reference(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Int64 [num_nodes] of `edge_index` [2, E]: 0 for degree 0, 1 for 1, 2 for 2 and 3, ..."""
    # The exponent of d = m * 2^e with m in [0.5, 1) is the number of binary digits of d.
    digits = torch.frexp(_in_degree(edge_index, num_nodes).float()).exponent
    return digits.long().clamp(max=DEGREE_BUCKETS - 1)


def bucket_fake(edge_index: Tensor, num_nodes: int) -> Tensor:
    _check_edge_index(edge_index)
    return edge_index.new_empty((num_nodes,), dtype=torch.int64)


def bucket_cost(edge_index: Tensor, num_nodes: int) -> Cost:
    """Destinations are read and counted."""
    return Cost(edge_index.shape[1] + num_nodes, num_bytes(edge_index) // 2 + 8 * num_nodes)


def bucket_samples(device: str = "cpu") -> Iterator[tuple[Tensor, int]]:
    for index, nodes, _ in samples(device):
        yield index, nodes
    yield torch.zeros(2, 70_000, dtype=torch.int64, device=device), 3


DEGREE_BUCKET = register(
    OpDef("degree_bucket", bucket_reference, bucket_fake, bucket_cost, bucket_samples)
)
