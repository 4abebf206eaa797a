"""The ten models: two layers each, PyG's own classes where it has them.

Every model is called with x and edge_index, the graph's `batch` if its nodes shall be pooled, and
what `EXTRAS` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphs import EDGE_CHANNELS, EDGE_TYPES, Graph
from torch import Tensor, nn
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    MLP,
    PNA,
    EdgeCNN,
    GINEConv,
    GraphSAGE,
    RGCNConv,
    TransformerConv,
    global_mean_pool,
)

HEADS = 4
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification", "attenuation")
EXTRAS = {"rgcn": "edge_type", "gine": "edge_attr"}


class TwoLayers(nn.Module):
    """Two convolutions with a ReLU between them, both given what is known of each edge."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList([first, second])
        self.act = nn.ReLU()

    def forward(self, x: Tensor, edge_index: Tensor, edges: Tensor | None = None) -> Tensor:
        """x [N, F] -> [N, classes]."""
        more = () if edges is None else (edges,)
        hidden = self.act(self.convs[0](x, edge_index, *more))
        out: Tensor = self.convs[1](hidden, edge_index, *more)
        return out


class Pooled(nn.Module):
    """The mean over the nodes of each graph of a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Tensor, edge_index: Tensor, batch: Tensor, edges: Tensor | None = None
    ) -> Tensor:
        """x [N, F] -> [graphs, classes]."""
        more = () if edges is None else (edges,)
        out: Tensor = global_mean_pool(self.model(x, edge_index, *more), batch)
        return out


def build(name: str, graph: Graph, hidden: int, classes: int) -> nn.Module:
    """The model of that name for `graph`, in eval mode, with the weights of seed 0."""
    torch.manual_seed(0)
    features = graph.x.shape[1]
    model = _BUILD[name](graph, features, hidden, classes)
    if graph.batch is not None:
        model = Pooled(model)
    return model.eval()


def completed(name: str, graph: Graph) -> Graph:
    """`graph` with what the model of that name reads of each edge."""
    if name == "rgcn":
        return graph.with_edge_type()
    return graph.with_edge_attr() if name == "gine" else graph


def arguments(name: str, graph: Graph) -> tuple[Tensor, ...]:
    """What the model of that name is called with."""
    batch = () if graph.batch is None else (graph.batch,)
    edges = (getattr(graph, EXTRAS[name]),) if name in EXTRAS else ()
    return (graph.x, graph.edge_index, *batch, *edges)


def _basic(kind: Any, **options: Any) -> Callable[[Graph, int, int, int], nn.Module]:
    def make(graph: Graph, features: int, hidden: int, classes: int) -> nn.Module:
        model: nn.Module = kind(features, hidden, 2, classes, **options)
        return model

    return make


def _pna(graph: Graph, features: int, hidden: int, classes: int) -> nn.Module:
    degrees = torch.bincount(graph.edge_index[1], minlength=graph.x.shape[0])
    options = {"aggregators": list(AGGREGATORS), "scalers": list(SCALERS)}
    model: nn.Module = PNA(features, hidden, 2, classes, deg=torch.bincount(degrees), **options)
    return model


def _transformer(graph: Graph, features: int, hidden: int, classes: int) -> nn.Module:
    return TwoLayers(
        TransformerConv(features, hidden // HEADS, HEADS),
        TransformerConv(hidden, classes, HEADS, concat=False),
    )


def _rgcn(graph: Graph, features: int, hidden: int, classes: int) -> nn.Module:
    return TwoLayers(RGCNConv(features, hidden, EDGE_TYPES), RGCNConv(hidden, classes, EDGE_TYPES))


def _gine(graph: Graph, features: int, hidden: int, classes: int) -> nn.Module:
    def layer(inputs: int, outputs: int) -> nn.Module:
        mlp = MLP([inputs, outputs, outputs], norm=None)
        conv: nn.Module = GINEConv(mlp, edge_dim=EDGE_CHANNELS)
        return conv

    return TwoLayers(layer(features, hidden), layer(hidden, classes))


_BUILD = {
    "gcn": _basic(GCN),
    "sage": _basic(GraphSAGE),
    "gin": _basic(GIN),
    "gat": _basic(GAT, heads=HEADS),
    "gatv2": _basic(GAT, heads=HEADS, v2=True),
    "transformer": _transformer,
    "pna": _pna,
    "rgcn": _rgcn,
    "edgeconv": _basic(EdgeCNN),
    "gine": _gine,
}
MODELS = tuple(_BUILD)
ATTENTION = ("gat", "gatv2", "transformer")
