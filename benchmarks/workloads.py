"""Named workloads: a graph, node features and a two-layer model of `torch_geometric.nn.models`.

A name is `GRAPH-MODEL`, for instance `cora-gcn` or `power-law-169k-gat`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

from gnnfx.demo import build, load

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
MODELS = ("gcn", "sage", "gin", "gat")


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A random directed graph whose in-degrees and out-degrees follow a power law."""

    nodes: int
    edges: int
    features: int
    hidden: int
    classes: int


POWER_LAW = {
    "power-law-5k": PowerLaw(5_000, 100_000, 64, 64, 16),
    "power-law-50k": PowerLaw(50_000, 1_000_000, 128, 128, 40),
    "power-law-169k": PowerLaw(169_343, 2_315_598, 128, 256, 40),
}
NAMES = tuple(f"{graph}-{model}" for graph in (*PLANETOID, *POWER_LAW) for model in MODELS)
DEFAULT = tuple(
    f"{graph}-{model}"
    for graph in ("cora", "pubmed", "power-law-50k", "power-law-169k")
    for model in MODELS
)
QUICK = ("power-law-5k-gcn", "power-law-5k-gat")


@dataclass(frozen=True, slots=True)
class Workload:
    """A model in eval mode and the arguments of one call."""

    name: str
    model_name: str
    model: Any  # an nn.Module of PyG, which has no types
    x: Tensor  # [N, F] float32
    edge_index: Tensor  # [2, E] int64
    channels: tuple[int, int, int]
    self_loops: int
    duplicate_edges: int


def make(name: str, root: Path) -> Workload:
    """The workload called `name`; `root` holds the Planetoid sets, random graphs need no files."""
    graph, _, model_name = name.rpartition("-")
    if name not in NAMES:
        raise SystemExit(f"unknown workload {name!r}; known: {', '.join(NAMES)}")
    torch.manual_seed(0)
    if graph in PLANETOID:
        data, classes = load(PLANETOID[graph], root=root)
        x, edge_index = data.x, data.edge_index
        hidden = 64 if model_name == "gat" else 16
        model = build(model_name, x.shape[1], classes, dataset=PLANETOID[graph])
    else:
        spec = POWER_LAW[graph]
        x, edge_index = power_law(spec)
        hidden, classes = spec.hidden, spec.classes
        model = _model(model_name, spec)
    return Workload(
        name=name,
        model_name=model_name,
        model=model.eval(),
        x=x,
        edge_index=edge_index,
        channels=(x.shape[1], hidden, classes),
        self_loops=int((edge_index[0] == edge_index[1]).sum()),
        duplicate_edges=edge_index.shape[1] - edge_index.unique(dim=1).shape[1],
    )


def power_law(spec: PowerLaw) -> tuple[Tensor, Tensor]:
    """Features from a normal distribution, ends of edges drawn with weight (rank + 10)^-0.7.

    Self-loops and duplicate edges occur, as they do in raw edge lists.
    """
    weight = (torch.arange(spec.nodes) + 10.0).pow(-0.7)
    src = torch.multinomial(weight, spec.edges, replacement=True)
    dst = torch.multinomial(weight, spec.edges, replacement=True)
    order = torch.randperm(spec.nodes)
    return torch.randn(spec.nodes, spec.features), torch.stack([order[src], order[dst]])


def _model(name: str, spec: PowerLaw) -> nn.Module:
    kind = {"gcn": GCN, "sage": GraphSAGE, "gin": GIN, "gat": GAT}[name]
    heads = {"heads": 4} if name == "gat" else {}
    model: nn.Module = kind(spec.features, spec.hidden, 2, spec.classes, **heads)
    return model
