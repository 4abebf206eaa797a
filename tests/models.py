"""Models and graphs that whole-program tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

IN, OUT = 20, 5


class GatedConv(MessagePassing):
    """A layer that PyG does not have: gated messages, and a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(aggr="add")
        self.value = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(inputs, 1)
        self.skip = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = self.propagate(edge_index, x=self.value(x), gate=torch.sigmoid(self.gate(x)))
        return out + self.skip(x)  # type: ignore[no-any-return]

    def message(self, x_j: Tensor, gate_j: Tensor) -> Tensor:
        return gate_j * x_j


class SumConv(MessagePassing):
    """GCNConv's work written by hand: transform, normalize by degree, sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        degree = torch.zeros(x.shape[0]).index_add(0, dst, torch.ones(dst.shape[0]))
        norm = degree.clamp(min=1).rsqrt()
        weight = norm[src] * norm[dst]
        return self.propagate(edge_index, x=self.lin(x), weight=weight)  # type: ignore[no-any-return]

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight.view(-1, 1) * x_j


class HandWritten(nn.Module):
    """Message passing without MessagePassing: indexing, index_add and PyG's softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(IN, 8)
        self.score = nn.Linear(8, 1)
        self.out = nn.Linear(8, OUT)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index[0], edge_index[1]
        h = self.lin(x).relu()
        weight = softmax(self.score(h[src] * h[dst]).view(-1), dst, num_nodes=x.size(0))
        out = torch.zeros(x.size(0), 8).index_add_(0, dst, weight[:, None] * h[src])
        return self.out(out)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Two layers of any kind with a ReLU between them."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = layer(IN, 16), layer(16, OUT)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)  # type: ignore[no-any-return]


class GraphClassifier(nn.Module):
    """GIN layers and mean pooling over a batch of graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = pyg.GIN(IN, 16, 2)
        self.out = nn.Linear(16, OUT)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.out(pyg.global_mean_pool(self.gnn(x, edge_index), batch))  # type: ignore[no-any-return]


NODE_MODELS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: pyg.GCN(IN, 16, 2, OUT, dropout=0.5),
    "gcn-norm-jk": lambda: pyg.GCN(IN, 16, 3, OUT, norm="batch", jk="cat"),
    "gcn-cached": lambda: pyg.GCN(IN, 16, 2, OUT, cached=True),
    "sage": lambda: pyg.GraphSAGE(IN, 16, 2, OUT),
    "sage-max": lambda: pyg.GraphSAGE(IN, 16, 2, OUT, aggr="max"),
    "gin": lambda: pyg.GIN(IN, 16, 2, OUT, norm="batch"),
    "gin-train-eps": lambda: pyg.GIN(IN, 16, 2, OUT, train_eps=True),
    "gat": lambda: pyg.GAT(IN, 16, 2, OUT, heads=4),
    "gatv2": lambda: pyg.GAT(IN, 16, 2, OUT, heads=2, v2=True),
    "gat-one-head": lambda: pyg.GAT(IN, 16, 2, OUT, heads=1),
    "custom-gated": lambda: Stack(GatedConv),
    "custom-sum": lambda: Stack(SumConv),
    "hand-written": HandWritten,
}


def make(name: str) -> nn.Module:
    """A model in eval mode with numbers of its own in every parameter and buffer."""
    torch.manual_seed(sum(map(ord, name)))
    model = NODE_MODELS[name]()
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if "var" in key else buffer.normal_()
    return model.eval()


def graph(nodes: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and a random edge index with duplicates and self-loops."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, IN, generator=generator)
    return x, torch.randint(max(nodes, 1), (2, count), generator=generator)


def star(leaves: int) -> tuple[Tensor, Tensor]:
    """Every node points at node 0, and node 0 at itself twice."""
    generator = torch.Generator().manual_seed(1)
    src = torch.cat([torch.arange(leaves + 1), torch.zeros(2, dtype=torch.int64)])
    x = torch.randn(leaves + 1, IN, generator=generator)
    return x, torch.stack([src, torch.zeros_like(src)])


UGLY: dict[str, Callable[[], tuple[Any, ...]]] = {
    "bigger": lambda: graph(70, 400),
    "no-edges": lambda: graph(6, 0),
    "one-node": lambda: graph(1, 0),
    "one-node-loops": lambda: graph(1, 3),
    "two-nodes": lambda: graph(2, 9),
    "as-many-nodes-as-edges": lambda: graph(31, 31),
    "star": lambda: star(300),
}
