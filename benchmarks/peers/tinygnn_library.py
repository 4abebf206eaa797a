"""TinyGNN, a C++ engine with AVX2 and OpenMP: GCN, SAGE and single GAT heads, same weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from graphs import Graph
from torch import Tensor
from workloads import Workload

from peers.peer import Peer, Unavailable, one_loop_per_node, pooled


def tinygnn(work: Workload) -> Peer:
    """Rows are destinations; GCN's norm is in the adjacency and is made once a graph."""
    try:
        library = importlib.import_module("tinygnn")
    except ImportError as error:
        raise Unavailable(f"pip install tinygnn, which compiles C++: {error}") from error
    kind = work.model_name
    if kind not in _LAYERS:
        raise Unavailable(f"TinyGNN has {', '.join(_LAYERS)} only")
    first, last = (_LAYERS[kind](library, conv, i == 0) for i, conv in enumerate(work.layers))

    def prepare(graph: Graph) -> tuple[Graph, Any, Any]:
        x = library.Tensor.from_numpy(graph.x.numpy())
        return graph, x, _adjacency(library, kind, graph)

    def call(prepared: tuple[Graph, Any, Any]) -> Tensor:
        graph, x, adjacency = prepared
        hidden = last(adjacency, first(adjacency, x))
        return pooled(torch.from_numpy(hidden.to_numpy()), graph)

    return Peer("tinygnn", f"TinyGNN {library.__version__}, same weights", prepare, call)


def _adjacency(library: Any, kind: str, graph: Graph) -> Any:
    nodes = graph.x.shape[0]
    src, dst = graph.edge_index if kind == "sage" else one_loop_per_node(graph)
    order = dst.argsort(stable=True)
    degree = torch.bincount(dst, minlength=nodes)
    rowptr = torch.nn.functional.pad(degree.cumsum(0), (1, 0)).int()
    scale = degree.float().rsqrt()
    values = (scale[src] * scale[dst])[order] if kind == "gcn" else torch.ones(len(dst))
    lists = (rowptr.tolist(), src[order].tolist(), values.tolist())
    return library.Tensor.sparse_csr(nodes, nodes, *lists)


def _gcn(library: Any, conv: Any, hidden: bool) -> Callable[[Any, Any], Any]:
    rows, columns = conv.lin.weight.shape
    layer = library.GCNLayer(columns, rows, True, _activation(library, hidden))
    layer.set_weight(_matrix(library, conv.lin.weight.t()))
    layer.set_bias(_matrix(library, conv.bias[None]))
    forward: Callable[[Any, Any], Any] = layer.forward
    return forward


def _sage(library: Any, conv: Any, hidden: bool) -> Callable[[Any, Any], Any]:
    rows, columns = conv.lin_l.weight.shape
    mean = library.SAGELayer.Aggregator.Mean
    layer = library.SAGELayer(columns, rows, mean, True, _activation(library, hidden))
    layer.set_weight_neigh(_matrix(library, conv.lin_l.weight.t()))
    layer.set_weight_self(_matrix(library, conv.lin_r.weight.t()))
    layer.set_bias(_matrix(library, conv.lin_l.bias[None]))
    forward: Callable[[Any, Any], Any] = layer.forward
    return forward


def _gat(library: Any, conv: Any, hidden: bool) -> Callable[[Any, Any], Any]:
    """Heads one after the other, joined in torch; TinyGNN's left score is the destination's."""
    heads = []
    for head, weight in enumerate(conv.lin.weight.chunk(conv.heads)):
        layer = library.GATLayer(weight.shape[1], conv.out_channels, conv.negative_slope, False)
        layer.set_weight(_matrix(library, weight.t()))
        layer.set_attn_left(_matrix(library, conv.att_dst[:, head]))
        layer.set_attn_right(_matrix(library, conv.att_src[:, head]))
        heads.append(layer)

    def forward(adjacency: Any, x: Any) -> Any:
        parts = [torch.from_numpy(layer.forward(adjacency, x).to_numpy()) for layer in heads]
        joined = torch.cat(parts, dim=1) if conv.concat else torch.stack(parts).mean(dim=0)
        out = joined + conv.bias
        return library.Tensor.from_numpy((out.relu_() if hidden else out).detach().numpy())

    return forward


def _activation(library: Any, hidden: bool) -> Any:
    return library.Activation.RELU if hidden else library.Activation.NONE


def _matrix(library: Any, tensor: Tensor) -> Any:
    return library.Tensor.from_numpy(tensor.detach().contiguous().numpy())


_LAYERS = {"gcn": _gcn, "sage": _sage, "gat": _gat}
