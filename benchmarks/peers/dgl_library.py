"""DGL with the same weights: its own layers where they compute the same, else its primitives."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from typing import Any

import torch
from graphs import EDGE_TYPES, Graph
from torch import Tensor
from workloads import Workload

from peers.dgl_layers import LAYERS
from peers.peer import Peer, Unavailable, one_loop_per_node, pooled

_WITH_LOOPS = ("gcn", "gat", "gatv2")


def dgl(work: Workload) -> Peer:
    """DGL 2.1 is the last release on the package index and predates this torch.

    Its C++ sampling library does not load, so an empty `dgl.graphbolt` stands in for it; the CPU
    kernels work.
    """
    library = import_dgl()
    kind = work.model_name
    layers = [LAYERS[kind](library, conv) for conv in work.layers]

    def prepare(graph: Graph) -> tuple[Graph, Any]:
        return graph, _graph(library, kind, graph)

    def call(prepared: tuple[Graph, Any]) -> Tensor:
        graph, structure = prepared
        hidden = layers[0](structure, graph.x).relu_()
        return pooled(layers[1](structure, hidden), graph)

    return Peer("dgl", f"DGL {library.__version__}, same weights", prepare, call)


def import_dgl() -> Any:
    """The module `dgl`; raises Unavailable where it does not import."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    sys.modules.setdefault("dgl.graphbolt", types.ModuleType("dgl.graphbolt"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("dgl")
    except Exception as error:  # DGL fails in many ways beside a torch it was not built for
        raise Unavailable(f"DGL does not import: {type(error).__name__}: {error}") from error


def _graph(library: Any, kind: str, graph: Graph) -> Any:
    """DGL's graph with what its layers look up in it."""
    nodes = graph.x.shape[0]
    pair = one_loop_per_node(graph) if kind in _WITH_LOOPS else tuple(graph.edge_index)
    if kind == "rgcn":
        # DGL multiplies segments of one type each; PyG averages over the edges of a type.
        assert graph.edge_type is not None
        order = graph.edge_type.argsort(stable=True)
        types_, (src, dst) = graph.edge_type[order], graph.edge_index[:, order]
        key = dst * EDGE_TYPES + types_
        count = torch.bincount(key, minlength=nodes * EDGE_TYPES)
        made = library.graph((src, dst), num_nodes=nodes)
        made.edata["type"] = types_
        made.edata["norm"] = count[key].float().reciprocal()[:, None]
    else:
        made = library.graph(pair, num_nodes=nodes)
    if kind == "gine":
        made.edata["attr"] = graph.edge_attr
    if kind in ("gcn", "pna"):
        made.ndata["degree"] = made.in_degrees().float()[:, None]
    if kind == "gcn":
        made.ndata["scale"] = made.ndata["degree"].rsqrt()
    made.create_formats_()
    return made
