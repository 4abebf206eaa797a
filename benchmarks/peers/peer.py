"""What a way to run a model is made of.

`prepare(graph)` turns a graph into what the peer computes on; `call(prepared)` is one forward pass.
On a warm graph only `call` is timed, on a new graph both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from graphs import Graph
from torch import Tensor
from torch_geometric.nn import global_mean_pool

from gnnfx.backend.module import OptimizedModule

EXACT_TOLERANCE = 1e-4
"""Largest difference from eager, relative to the largest output, for peers that claim float32."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run the model.

    exact: it claims eager's float32 answer.
    remembers: a graph that it has seen is faster than a new one; where that is not so, one timing
        stands for both.
    extra: what else there is to tell, as plain data.
    module: the optimized module behind the peer, if it is one.
    """

    name: str
    note: str
    prepare: Callable[[Graph], Any]
    call: Callable[[Any], Tensor]
    exact: bool = True
    remembers: bool = True
    extra: dict[str, object] | None = None
    module: OptimizedModule | None = None


class Unavailable(Exception):
    """This peer cannot run this workload here; the text says why."""


def pooled(out: Tensor, graph: Graph) -> Tensor:
    """What the model makes of the last layer's rows [N, classes] for a batch of graphs."""
    if graph.batch is None:
        return out
    pooled: Tensor = global_mean_pool(out, graph.batch)
    return pooled


def one_loop_per_node(graph: Graph) -> tuple[Tensor, Tensor]:
    """(src, dst) with every self-loop replaced by exactly one a node, as GCN and GAT have it."""
    kept = graph.edge_index[:, graph.edge_index[0] != graph.edge_index[1]]
    loops = torch.arange(graph.x.shape[0], device=kept.device)
    return torch.cat([kept[0], loops]), torch.cat([kept[1], loops])


def csr(src: Tensor, dst: Tensor, values: Tensor, nodes: int) -> Tensor:
    """Sparse [N, N] with a row for each destination and an entry for each edge.

    It is put together by hand, as torch adds duplicate edges up on the way from COO to CSR.
    """
    order = dst.argsort(stable=True)
    rowptr = F.pad(torch.bincount(dst, minlength=nodes).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that sparse CSR is in beta
        return torch.sparse_csr_tensor(rowptr, src[order], values[order], (nodes, nodes))
