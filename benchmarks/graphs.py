"""Graphs that models are timed on: data sets of PyG, random power-law graphs, batches.

Everything random comes from seed 0, so every run and every peer sees the same graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.datasets import LINKXDataset
from torch_geometric.transforms import NormalizeFeatures

from gnnfx.demo import load
from gnnfx.errors import InputError

EDGE_TYPES = 8
EDGE_CHANNELS = 16
_FANOUTS = (10, 10)
_SEEDS = 512
_BATCHES = 8


class Missing(Exception):
    """The files of a data set are not there; the text says which and where they belong."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph or batch, with types or features of edges where the model reads them."""

    x: Tensor  # [N, F] float32
    edge_index: Tensor  # [2, E] int64
    batch: Tensor | None = None  # [N] int64: which of several small graphs a node is of
    edge_type: Tensor | None = None  # [E] int64, below EDGE_TYPES
    edge_attr: Tensor | None = None  # [E, EDGE_CHANNELS] float32

    def with_edge_type(self) -> Graph:
        """The graph with a type drawn for each edge."""
        return replace(self, edge_type=torch.randint(EDGE_TYPES, (self.edge_index.shape[1],)))

    def with_edge_attr(self) -> Graph:
        """The graph with features drawn for each edge."""
        return replace(self, edge_attr=torch.randn(self.edge_index.shape[1], EDGE_CHANNELS))

    def rotated(self, places: int) -> Graph:
        """The same graph with its edges in another order, in new tensors.

        The set of edges, and so every answer, stays; their order in memory stays as local as it
        was; and nothing that remembers tensors, by identity or content, can recognise it.
        """
        turn = places % max(self.edge_index.shape[1], 1)
        return replace(
            self,
            edge_index=self.edge_index.roll(turn, dims=1),
            edge_type=None if self.edge_type is None else self.edge_type.roll(turn),
            edge_attr=None if self.edge_attr is None else self.edge_attr.roll(turn, dims=0),
        )

    def to(self, device: str) -> Graph:
        """The graph on a device."""
        given: Any = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: Any = {name: t if t is None else t.to(device) for name, t in given.items()}
        return Graph(**moved)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A random directed graph whose in-degrees and out-degrees follow a power law."""

    nodes: int
    edges: int
    features: int
    hidden: int
    classes: int


DATASETS = {"cora": "Cora", "pubmed": "PubMed", "physics": "Physics", "cornell5": "cornell5"}
POWER_LAW = {
    "power-law-5k": PowerLaw(5_000, 100_000, 64, 64, 16),
    "power-law-50k": PowerLaw(50_000, 1_000_000, 128, 128, 40),
    "power-law-169k": PowerLaw(169_343, 2_315_598, 128, 256, 40),
    "power-law-1m": PowerLaw(1_000_000, 20_000_000, 128, 128, 40),
}


def dataset(name: str, root: Path) -> tuple[Graph, int]:
    """A data set's graph and its number of classes; raises Missing."""
    title = DATASETS[name]
    try:
        if name == "cornell5":
            folder = root / "LINKXDataset" if (root / "LINKXDataset").is_dir() else root
            loaded = LINKXDataset(str(folder), title, transform=NormalizeFeatures())
            data, classes = loaded[0], loaded.num_classes
        else:
            data, classes = load(title, root=root)
    except (OSError, InputError) as error:
        raise Missing(f"{title} is neither in {root} nor can it be downloaded: {error}") from error
    return Graph(data.x.float().contiguous(), data.edge_index.contiguous()), classes


def power_law(nodes: int, edges: int, features: int) -> Graph:
    """Features from a normal distribution, ends of edges drawn with weight (rank + 10)^-0.7.

    Self-loops and duplicate edges occur, as they do in raw edge lists.
    """
    torch.manual_seed(0)
    weight = (torch.arange(nodes) + 10.0).pow(-0.7)
    src = torch.multinomial(weight, edges, replacement=True)
    dst = torch.multinomial(weight, edges, replacement=True)
    order = torch.randperm(nodes)
    return Graph(torch.randn(nodes, features), torch.stack([order[src], order[dst]]))


def molecules(features: int, graphs: int, batches: int) -> list[Graph]:
    """Batches of random graphs like molecules: trees of about 23 atoms with two or three rings."""
    torch.manual_seed(0)
    return [_molecule_batch(features, graphs) for _ in range(batches)]


def _molecule_batch(features: int, graphs: int) -> Graph:
    sizes = (torch.randn(graphs) * 7 + 23).round().long().clamp(5, 60)
    first = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    pairs = []
    for start, size in zip(first.tolist(), sizes.tolist(), strict=False):
        atoms = torch.arange(1, size)
        # An atom is bound to one of the two before it, so degrees stay below five or so.
        tree = torch.stack([(atoms - 1 - torch.randint(2, atoms.shape)).clamp(min=0), atoms])
        rings = torch.randperm(size - 4)[: size // 10 + 1]
        pairs.append(start + torch.cat([tree, torch.stack([rings, rings + 4])], dim=1))
    bonds = torch.cat(pairs, dim=1)
    edge_index = torch.cat([bonds, bonds.flip(0)], dim=1)
    batch = torch.arange(graphs).repeat_interleave(sizes)
    return Graph(torch.randn(int(first[-1]), features), edge_index, batch)


def sampled(whole: Graph) -> list[Graph]:
    """Subgraphs around seed nodes as NeighborLoader draws them, without its compiled sampler.

    Each hop draws at most so many in-edges a node without replacement; nodes are numbered in the
    order in which they are reached, the seeds first.
    """
    generator = torch.Generator().manual_seed(0)
    nodes = whole.x.shape[0]
    order = whole.edge_index[1].argsort(stable=True)
    src, dst = whole.edge_index[:, order]
    rowptr = torch.nn.functional.pad(torch.bincount(dst, minlength=nodes).cumsum(0), (1, 0))
    drawn = torch.randperm(nodes, generator=generator)
    count = min(_SEEDS, max(1, nodes // _BATCHES))
    batches = []
    for seeds in drawn[: count * _BATCHES].split(count):
        edges = _sample(src, rowptr, seeds, nodes, generator)
        reached, local = _numbered(seeds, src[edges], dst[edges], nodes)
        batches.append(Graph(whole.x[reached], local))
    return batches


def _sample(
    src: Tensor, rowptr: Tensor, seeds: Tensor, nodes: int, generator: torch.Generator
) -> Tensor:
    """Which edges, in the order of `rowptr`, are drawn around `seeds`."""
    known = torch.zeros(nodes, dtype=torch.bool)
    known[seeds] = True
    frontier, drawn = seeds, []
    for fanout in _FANOUTS:
        degree = rowptr[frontier + 1] - rowptr[frontier]
        owner = torch.arange(len(frontier)).repeat_interleave(degree)
        before = torch.nn.functional.pad(degree.cumsum(0), (1, 0))[:-1]
        candidates = rowptr[frontier][owner] + torch.arange(len(owner)) - before[owner]
        # A random order within each owner; the first `fanout` of each are drawn.
        shuffled = (owner + torch.rand(len(owner), generator=generator).double()).argsort()
        kept = torch.arange(len(owner)) - before[owner] < fanout
        edges = candidates[shuffled][kept]
        drawn.append(edges)
        found = src[edges].unique()
        frontier = found[~known[found]]
        known[frontier] = True
    return torch.cat(drawn)


def _numbered(seeds: Tensor, src: Tensor, dst: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """The nodes of a subgraph, seeds first, and its edges between places in that list."""
    others = torch.cat([src, dst]).unique()
    place = torch.full((nodes,), -1)
    place[seeds] = torch.arange(len(seeds))
    others = others[place[others] < 0]
    place[others] = len(seeds) + torch.arange(len(others))
    return torch.cat([seeds, others]), torch.stack([place[src], place[dst]])
