"""Named workloads: a two-layer model and the graph, or the batches of graphs, that it runs on.

A name is `GRAPH-MODEL`, for instance `cora-gcn`, `power-law-169k-gat`, `molecules-gine` or
`sampled-sage`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
import torch
from graphs import DATASETS, POWER_LAW, Graph, dataset, molecules, power_law, sampled
from torch import Tensor

MOLECULES = (64, 64, 12)
_MOLECULES_A_BATCH = 128
GRAPHS = (*DATASETS, *POWER_LAW, "molecules", "sampled")
NAMES = tuple(f"{graph}-{model}" for graph in GRAPHS for model in models.MODELS)
DEFAULT = tuple(name for name in NAMES if not name.startswith("power-law-5k"))
QUICK = ("power-law-5k-gcn", "power-law-5k-gat", "molecules-gine")
SHRINK = 16


@dataclass(frozen=True, slots=True)
class Workload:
    """A model in eval mode and the graphs of its calls.

    graphs: one graph, or batches of which each call takes another.
    always_new: no graph comes twice, so there is nothing to time on a graph seen before.
    small: a graph that eager can surely run on, where it may not fit on the others.
    """

    name: str
    model_name: str
    model: Any  # an nn.Module of PyG, which has no types
    graphs: tuple[Graph, ...]
    channels: tuple[int, int, int]
    always_new: bool = False
    small: Graph | None = None

    @property
    def graph(self) -> Graph:
        """The graph of warm calls."""
        return self.graphs[0]

    @property
    def nodes(self) -> int:
        """Nodes of the first graph."""
        return self.graph.x.shape[0]

    @property
    def edges(self) -> int:
        """Edges of the first graph."""
        return self.graph.edge_index.shape[1]

    @property
    def layers(self) -> list[Any]:
        """The two convolutions."""
        return list(getattr(self.model, "model", self.model).convs)

    def arguments(self, graph: Graph) -> tuple[Tensor, ...]:
        """What the model is called with on `graph`."""
        return models.arguments(self.model_name, graph)

    def shrunk(self) -> Workload:
        """The same model on the first rows of x and a random graph, a sixteenth as large.

        Memory of a call is proportional to nodes and edges, so this one tells how much the whole
        would need without running it.
        """
        nodes, edges = max(1, self.nodes // SHRINK), max(1, self.edges // SHRINK)
        random = replace(power_law(nodes, edges, 1), x=self.graph.x[:nodes].cpu().contiguous())
        graph = models.completed(self.model_name, random)
        return replace(self, name=f"{self.name} / {SHRINK}", graphs=(graph,))

    def to(self, device: str) -> Workload:
        """The workload on a device."""
        graphs = tuple(graph.to(device) for graph in self.graphs)
        return replace(self, model=self.model.to(device), graphs=graphs)


def make(name: str, root: Path) -> Workload:
    """The workload called `name`; `root` holds the data sets, random graphs need no files.

    Raises graphs.Missing where the files of a data set are not there.
    """
    if name not in NAMES:
        raise SystemExit(f"unknown workload {name!r}; known: {', '.join(NAMES)}")
    kind, _, model_name = name.rpartition("-")
    if kind in DATASETS:
        graph, classes = dataset(kind, root)
        graphs, hidden = [graph], _hidden(kind, model_name)
    elif kind == "molecules":
        features, hidden, classes = MOLECULES
        graphs = molecules(features, _MOLECULES_A_BATCH, 8)
    else:
        spec = POWER_LAW["power-law-169k" if kind == "sampled" else kind]
        graphs = [power_law(spec.nodes, spec.edges, spec.features)]
        hidden, classes = spec.hidden, spec.classes
        if kind == "sampled":
            graphs = sampled(graphs[0])
    return of(name, model_name, graphs, hidden, classes, always_new=kind == "sampled")


def of(
    name: str,
    model_name: str,
    graphs: list[Graph],
    hidden: int,
    classes: int,
    *,
    always_new: bool = False,
) -> Workload:
    """A workload of any graphs."""
    torch.manual_seed(0)
    graphs = [models.completed(model_name, graph) for graph in graphs]
    return Workload(
        name=name,
        model_name=model_name,
        model=models.build(model_name, graphs[0], hidden, classes),
        graphs=tuple(graphs),
        channels=(graphs[0].x.shape[1], hidden, classes),
        always_new=always_new,
    )


def _hidden(kind: str, model_name: str) -> int:
    """The width that is usual: 16 on the small citation graphs, 64 with heads and elsewhere."""
    small = kind in ("cora", "pubmed") and model_name not in models.ATTENTION
    return 16 if small else 64
