"""Mini-batches of sampled neighbours, trimmed layer by layer, against eager PyG."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.utils import trim_to_layer

import gnnfx

Counts = tuple[int, ...]
# Nodes of each hop (seeds first) and the edges drawn into each hop.
BATCHES: list[tuple[Counts, Counts]] = [
    ((5, 12, 30), (13, 41)),
    ((7, 20, 44), (33, 60)),
    ((3, 0, 0), (5, 0)),
    ((1, 2, 3), (2, 3)),
    ((4, 9, 0), (12, 8)),
    ((6, 6, 6), (6, 6)),
]


def sample(nodes: Counts, edges: Counts, seed: int) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """A batch in the layout of PyG's loaders: hop after hop, edges into the hop before."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(nodes), 8, generator=generator)
    start, parts = 0, []
    for hop, count in enumerate(edges):
        end = sum(nodes[: hop + 2])
        dst = start + torch.randint(max(nodes[hop], 1), (count,), generator=generator)
        src = torch.randint(end, (count,), generator=generator)
        parts.append(torch.stack([src, dst.clamp(max=end - 1)]))
        start += nodes[hop]
    return x, torch.cat(parts, 1), list(nodes), list(edges)


class Trimmed(nn.Module):
    """A model that trims by hand and answers for the seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([pyg.SAGEConv(8, 16), pyg.SAGEConv(16, 4)])

    def forward(
        self, x: Tensor, edge_index: Tensor, nodes: list[int], edges: list[int], batch_size: int
    ) -> Tensor:
        for i, conv in enumerate(self.convs):
            x, edge_index, _ = trim_to_layer(i, nodes, edges, x, edge_index)
            x = conv(x, edge_index) if i else conv(x, edge_index).relu()
        return x[:batch_size]


def by_hand(
    x: Tensor, edge_index: Tensor, nodes: list[int], edges: list[int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (x, edge_index, nodes, edges, nodes[0]), {}


def by_name(
    x: Tensor, edge_index: Tensor, nodes: list[int], edges: list[int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = ("num_sampled_nodes_per_hop", "num_sampled_edges_per_hop")
    return (x, edge_index), dict(zip(names, (nodes, edges), strict=True))


MODELS = {
    "by-hand": (Trimmed, by_hand),
    "sage": (lambda: pyg.GraphSAGE(8, 16, 2, 4), by_name),
    "gat": (lambda: pyg.GAT(8, 16, 2, 4, heads=2), by_name),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_batch_is_served_by_one_program(name: str) -> None:
    make, call = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    args, kwargs = call(*sample(*BATCHES[0], seed=0))
    opt = gnnfx.optimize(model, "fp32", args, example_kwargs=kwargs)
    assert opt.report.kept == ()
    assert "aggregate" in opt.ir() or "attend" in opt.ir()
    for seed, batch in enumerate(BATCHES):
        args, kwargs = call(*sample(*batch, seed=seed))
        with torch.no_grad():
            torch.testing.assert_close(
                opt(*args, **kwargs), model(*args, **kwargs), rtol=1e-5, atol=1e-5
            )
