"""PyTorch Geometric: as everyone runs it, under torch.compile, and on sparse adjacencies."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from graphs import Graph
from torch import Tensor
from workloads import Workload

from peers.peer import Peer, Unavailable
from peers.peer import csr as adjacency

# Other layers refuse an adjacency, or turn it back into an edge list in each call.
_SUMS = ("gcn", "sage", "gin")


def eager(work: Workload) -> Peer:
    """PyTorch Geometric as everyone runs it."""
    return Peer(
        "eager", "PyG on edge_index", work.arguments, lambda a: work.model(*a), remembers=False
    )


def compiled(work: Workload) -> Peer:
    """The same model under torch.compile."""
    torch._dynamo.reset()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it warns of breaks in the graph
    model: Any = torch.compile(copy.deepcopy(work.model), dynamic=True)
    note = "torch.compile(dynamic=True) of PyG"
    return Peer("compile", note, work.arguments, lambda a: model(*a), remembers=False)


def csr(work: Workload) -> Peer:
    """PyG on torch's sparse CSR adjacency, one row per destination."""
    return _on_adjacency("csr", "PyG on a torch sparse CSR adjacency", work, work.model)


def csr_cached(work: Workload) -> Peer:
    """The same with GCNConv's `cached=True`, emptied for a new graph."""
    if work.model_name != "gcn":
        raise Unavailable("only GCNConv has cached=True")
    model = copy.deepcopy(work.model)
    convs = [m for m in model.modules() if hasattr(m, "cached")]
    for conv in convs:
        conv.cached = True

    def empty() -> None:
        for conv in convs:
            conv._cached_adj_t = conv._cached_edge_index = None

    note = "PyG on a torch sparse CSR adjacency, cached=True"
    return _on_adjacency("csr-cached", note, work, model, empty)


def _on_adjacency(name: str, note: str, work: Workload, model: Any, start: Any = None) -> Peer:
    if work.model_name not in _SUMS:
        raise Unavailable(f"PyG multiplies by an adjacency in {', '.join(_SUMS)} only")

    def prepare(graph: Graph) -> tuple[Tensor, ...]:
        if start is not None:
            start()
        x, (src, dst), *more = work.arguments(graph)
        ones = torch.ones(len(src), device=src.device)
        return (x, adjacency(src, dst, ones, len(x)), *more)

    return Peer(name, note, prepare, lambda a: model(*a))
