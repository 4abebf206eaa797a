"""turbo-gnn's fused attention kernels with the same weights, on GPUs only."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from graphs import Graph
from torch import Tensor
from workloads import Workload

from peers.peer import Peer, Unavailable, one_loop_per_node, pooled

Layer = Callable[[Any, Tensor], Tensor]


def turbo(work: Workload) -> Peer:
    """GATv2 and TransformerConv, the layers that it has kernels of its own for."""
    try:
        library = importlib.import_module("turbo_gnn")
    except Exception as error:  # it is compiled for one torch and fails in many ways beside another
        raise Unavailable(f"turbo_gnn: {type(error).__name__}: {error}") from error
    kind = work.model_name
    if kind not in _LAYERS:
        raise Unavailable(f"turbo-gnn has kernels for {', '.join(_LAYERS)} only")
    first, last = (_LAYERS[kind](library, conv) for conv in work.layers)

    def prepare(graph: Graph) -> tuple[Graph, Any]:
        src, dst = one_loop_per_node(graph) if kind == "gatv2" else graph.edge_index
        nodes = graph.x.shape[0]
        both = (*_compressed(src, dst, nodes), *_compressed(dst, src, nodes))
        buckets = library.AdjacencyForwardBackwardWithNodeBuckets
        return graph, buckets.from_csr(*both).to(graph.x.device)

    def call(prepared: tuple[Graph, Any]) -> Tensor:
        graph, structure = prepared
        return pooled(last(structure, first(structure, graph.x).relu_()), graph)

    return Peer("turbo-gnn", "turbo-gnn, same weights", prepare, call)


def _compressed(src: Tensor, dst: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    rowptr = torch.nn.functional.pad(torch.bincount(dst, minlength=nodes).cumsum(0), (1, 0))
    return rowptr.int(), src[dst.argsort(stable=True)].int()


def _gatv2(library: Any, conv: Any) -> Layer:
    shape = (-1, conv.heads, conv.out_channels)

    def layer(graph: Any, x: Tensor) -> Tensor:
        own, others = conv.lin_r(x).view(shape), conv.lin_l(x).view(shape)
        out = library.gatv2_aggr(
            graph, own, x_neighbors=others, attention_weights=conv.att[0], negative_slope=0.2
        )
        return _join(out.view(shape), conv).add_(conv.bias)

    return layer


def _transformer(library: Any, conv: Any) -> Layer:
    shape = (-1, conv.heads, conv.out_channels)

    def layer(graph: Any, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).view(shape) for linear in (conv.lin_query, conv.lin_key, conv.lin_value)
        )
        scale = 1 / math.sqrt(conv.out_channels)
        out = library.graph_transformer_aggr(graph, x, Q=query, K=key, V=value, scale=scale)
        return _join(out.view(shape), conv).add_(conv.lin_skip(x))

    return layer


def _join(heads: Tensor, conv: Any) -> Tensor:
    return heads.flatten(1) if conv.concat else heads.mean(dim=1)


_LAYERS = {"gatv2": _gatv2, "transformer": _transformer}
