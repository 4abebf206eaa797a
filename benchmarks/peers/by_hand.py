"""GCN, SAGE and GIN as an expert writes them with torch.sparse: on a GPU that is cuSPARSE.

The adjacency carries the norm and is made once a graph; each layer aggregates on its narrower side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from graphs import Graph
from torch import Tensor
from workloads import Workload

from peers.peer import Peer, Unavailable, csr, one_loop_per_node, pooled

Layer = Callable[[Tensor, Tensor], Tensor]


def by_hand(work: Workload) -> Peer:
    """In float32."""
    return _peer("torch.sparse", work, torch.float32)


def by_hand_half(work: Workload) -> Peer:
    """In float16, on GPUs."""
    return _peer("torch.sparse-half", work, torch.float16)


def _peer(name: str, work: Workload, dtype: torch.dtype) -> Peer:
    kind = work.model_name
    if kind not in _LAYERS:
        raise Unavailable(f"written for {', '.join(_LAYERS)}")
    layers = [_LAYERS[kind](_cast(conv, dtype)) for conv in work.layers]

    def prepare(graph: Graph) -> tuple[Graph, Tensor, Tensor]:
        return graph, graph.x.to(dtype), _adjacency(kind, graph, dtype)

    def call(prepared: tuple[Graph, Tensor, Tensor]) -> Tensor:
        graph, x, adjacency = prepared
        hidden = layers[0](adjacency, x).relu_()
        return pooled(layers[1](adjacency, hidden).float(), graph)

    note = f"by hand: torch.sparse, norm precomputed, {str(dtype).removeprefix('torch.')}"
    return Peer(name, note, prepare, call, exact=dtype == torch.float32)


def _cast(conv: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: p.detach().to(dtype) for name, p in conv.named_parameters()}


def _adjacency(kind: str, graph: Graph, dtype: torch.dtype) -> Tensor:
    """Sparse [N, N], a row for each destination: normalized, averaging or plain."""
    nodes = graph.x.shape[0]
    src, dst = one_loop_per_node(graph) if kind == "gcn" else graph.edge_index
    degree = torch.bincount(dst, minlength=nodes).float()
    if kind == "gcn":
        scale = degree.rsqrt()
        values = scale[src] * scale[dst]
    elif kind == "sage":
        values = degree.clamp(min=1).reciprocal()[dst]
    else:
        values = torch.ones(len(dst), device=dst.device)
    return csr(src, dst, values.to(dtype), nodes)


def _narrower_first(weight: Tensor) -> bool:
    """Whether the linear layer makes rows narrower, so that it comes before the aggregation."""
    return weight.shape[0] < weight.shape[1]


def _gcn(p: dict[str, Tensor]) -> Layer:
    weight, bias = p["lin.weight"], p["bias"]
    if _narrower_first(weight):
        return lambda adjacency, h: adjacency @ F.linear(h, weight) + bias
    return lambda adjacency, h: F.linear(adjacency @ h, weight, bias)


def _sage(p: dict[str, Tensor]) -> Layer:
    weight, bias, root = p["lin_l.weight"], p["lin_l.bias"], p["lin_r.weight"]
    if _narrower_first(weight):
        return lambda adjacency, h: (adjacency @ F.linear(h, weight)).add_(F.linear(h, root, bias))
    return lambda adjacency, h: F.linear(adjacency @ h, weight, bias).add_(F.linear(h, root))


def _gin(p: dict[str, Tensor]) -> Layer:
    weight, bias = p["nn.lins.0.weight"], p["nn.lins.0.bias"]
    last, last_bias = p["nn.lins.1.weight"], p["nn.lins.1.bias"]

    def layer(adjacency: Tensor, h: Tensor) -> Tensor:
        if _narrower_first(weight):
            h = F.linear(h, weight)
            inner = (adjacency @ h).add_(h).add_(bias)
        else:
            inner = F.linear((adjacency @ h).add_(h), weight, bias)
        return F.linear(inner.relu_(), last, last_bias)

    return layer


_LAYERS: dict[str, Callable[[dict[str, Tensor]], Layer]] = {
    "gcn": _gcn,
    "sage": _sage,
    "gin": _gin,
}
