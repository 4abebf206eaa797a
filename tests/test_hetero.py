"""Models of typed nodes and edges: what they give, how their axes are called, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, HGTConv, SAGEConv, to_hetero, to_hetero_with_bases
from torch_geometric.utils import softmax

import gnnfx
from gnnfx import Prune, Pruner
from gnnfx.errors import InputError

CHANNELS = {"author": 8, "paper": 12}
TYPES = [("author", "writes", "paper"), ("paper", "cites", "paper"), ("paper", "by", "author")]
Graph = tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]


class Typed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convs = {t: SAGEConv((CHANNELS[t[0]], CHANNELS[t[2]]), 4) for t in TYPES}
        self.conv = HeteroConv(convs)

    def forward(self, x_dict: object, edge_index_dict: object) -> dict[str, Tensor]:
        out: dict[str, Tensor] = self.conv(x_dict, edge_index_dict)
        return out


class OfData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.typed = Typed()

    def forward(self, data: HeteroData) -> dict[str, Tensor]:
        out: dict[str, Tensor] = self.typed(data.x_dict, data.edge_index_dict)
        return out


def graph(authors: int = 31, papers: int = 47, edges: tuple[int, ...] = (101, 89, 55)) -> Graph:
    rows = {"author": authors, "paper": papers}
    x = {name: torch.randn(count, CHANNELS[name]) for name, count in rows.items()}
    index = {}
    for type_, count in zip(TYPES, edges, strict=True):
        ends = [torch.randint(rows[end], (count,)) for end in (type_[0], type_[2])]
        index[type_] = torch.stack(ends)
    return x, index


def assert_same(want: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    assert want.keys() == got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


def test_graphs_of_other_sizes_and_names_of_axes() -> None:
    model = Typed().eval()
    optimized = gnnfx.optimize(model, "fp32", graph())
    assert "f32[N[paper], 12]" in optimized.ir()
    assert optimized.ir().count("= aggregate_linear_sum(") == len(TYPES)
    for other in (graph(17, 23, (60, 0, 30)), graph(5, 5, (0, 0, 0))):
        with torch.no_grad():
            assert_same(model(*other), optimized(*other))
    x, index = graph()
    index[TYPES[0]][0, 0] = 31
    with pytest.raises(InputError, match=r"edge_index_dict\['author','writes','paper'\].*node 31"):
        optimized(x, index)
    with pytest.raises(InputError, match="lack"):
        optimized(x, {TYPES[0]: index[TYPES[0]]})


def test_hetero_data_itself() -> None:
    def data(given: Graph) -> HeteroData:
        made = HeteroData()
        for name, x in given[0].items():
            made[name].x = x
        for type_, index in given[1].items():
            made[type_].edge_index = index
        return made

    model = OfData().eval()
    optimized = gnnfx.optimize(model, "fp32", (data(graph()),))
    other = data(graph(17, 23, (60, 0, 30)))
    assert "kept" not in optimized.ir()
    with torch.no_grad():
        assert_same(model(other), optimized(other))


class Homogeneous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv((-1, -1), 16), SAGEConv((-1, -1), 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


def with_bases(model: nn.Module, metadata: Any) -> nn.Module:
    """Bases weight messages by type in hooks, which have to be captured too."""
    made: nn.Module = to_hetero_with_bases(model, metadata, num_bases=3, in_channels={"x": 8})
    return made


@pytest.mark.parametrize("transform", [to_hetero, with_bases])
@pytest.mark.parametrize("papers", [47, 31], ids=["sizes-differ", "sizes-equal"])
def test_transformed_models(transform: Callable[..., nn.Module], papers: int) -> None:
    model = transform(Homogeneous(), (list(CHANNELS), TYPES)).eval()
    example = graph(papers=papers)
    with torch.no_grad():
        model(*example)
    optimized = gnnfx.optimize(model, "fp32", example)
    assert optimized.report.kept == ()
    for other in (graph(17, 23, (60, 0, 30)), graph(30, 30, (40, 40, 40))):
        with torch.no_grad():
            assert_same(model(*other), optimized(*other))


class OwnScores(HGTConv):
    """An HGTConv that has changed what PyG's does with priors."""

    def message(
        self, k_j: Tensor, q_i: Tensor, v_j: Tensor, edge_attr: Tensor, index: Tensor
    ) -> Tensor:
        scores = softmax((q_i * k_j).sum(-1) + edge_attr, index)
        messages: Tensor = v_j * scores.unsqueeze(-1)
        return messages.flatten(1)


class Attending(nn.Module):
    def __init__(self, layer: type[HGTConv]) -> None:
        super().__init__()
        metadata = list(CHANNELS), TYPES
        self.layers = nn.ModuleList(layer(c, 8, metadata, heads=2) for c in (CHANNELS, 8))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        for layer in self.layers:
            x_dict = layer(x_dict, edge_index_dict)
        return x_dict


@pytest.mark.parametrize(("layer", "fused"), [(HGTConv, 2), (OwnScores, 0)])
def test_attention_over_typed_edges(layer: type[HGTConv], fused: int) -> None:
    model = Attending(layer).eval()
    optimized = gnnfx.optimize(model, "fp32", graph())
    for other in (graph(), graph(17, 23, (60, 0, 30))):
        with torch.no_grad():
            assert_same(model(*other), optimized(*other))
    ir = optimized.ir()
    assert ir.count("= attend_dot(") == fused
    if fused:
        # A type's queries, keys and values of an edge type, and a type's outputs.  Twice there are
        # wider papers, whose keys and values two edge types share.
        linear = len(CHANNELS) + 2 * len(TYPES) + len(CHANNELS)
        assert ir.count("= linear(") == 2 * linear + 2
        assert "index_copy" not in ir


def test_channels_of_typed_attention_go() -> None:
    torch.manual_seed(0)
    model, (x, edges) = Attending(HGTConv).double(), graph()
    example = {name: rows.double() for name, rows in x.items()}, edges
    pruner = Pruner(model, Prune(0.5), example)
    pruner.step()
    small = pruner.remove()
    assert small.get_parameter("layers.0.k_rel.weight").shape == (6, 2, 2)
    assert small.get_parameter("layers.0.v_rel.weight").shape == (6, 2, 2)
    for training in (False, True):
        assert_same(model.train(training)(*example), small.train(training)(*example))
