"""split-edge-types: one sweep takes the edge lists of all types apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import FiLMConv, RGATConv, RGCNConv

import gnnfx
from gnnfx.errors import InputError
from gnnfx.ir.text import dump, parse
from gnnfx.passes.split_edge_types import SplitEdgeTypes
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

TYPES = """\
program types(edges: i64[2, E], kind: i64[E])
  a: bool[E] = aten.eq.Scalar(kind, 2)
  b: i64[2, D0] = aten.index.Tensor(edges, [None, a])
  c: bool[E] = aten.eq.Scalar(kind, 0)
  d: i64[2, D1] = aten.index.Tensor(edges, [None, c])
  return (b, d)
"""
KINDS = torch.tensor([0, 2, 1, 2, -1, 7, 0])
EDGES = torch.arange(14).reshape(2, 7)


def test_masks_become_one_split() -> None:
    before, after, _ = rewrite(SplitEdgeTypes(), TYPES)
    assert set(body(after)) == {"split_edges", "getitem"}
    assert next(after.find("split_edges")).args["types"] == [2, 0]
    check_values(before, after, EDGES, KINDS)
    check_values(before, after, EDGES[:, :0], KINDS[:0])
    check_second_run(SplitEdgeTypes(), after)
    assert dump(parse(dump(after))) == dump(after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("kind, 0)", "kind, 2)", id="one-type"),
        pytest.param("aten.eq.Scalar", "aten.ne.Scalar", id="other-masks"),
        pytest.param("i64[E]", "i32[E]", id="other-integers"),
        pytest.param("i64[2, ", "i64[3, ", id="no-edge-list"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    assert old in TYPES
    before, after, _ = rewrite(SplitEdgeTypes(), TYPES.replace(old, new))
    assert after is before


def test_fewer_types_than_edges_is_an_error_and_no_read_beyond_memory() -> None:
    with pytest.raises(IndexError):
        torch.ops.gnnfx.split_edges(EDGES[:, :3], KINDS, [0, 1])


class _Typed(nn.Module):
    def __init__(self, conv: type[nn.Module]) -> None:
        super().__init__()
        self.conv = conv(8, 6, num_relations=4)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index, edge_type)
        return out


@pytest.mark.parametrize(("conv", "split"), [(RGCNConv, True), (FiLMConv, True), (RGATConv, False)])
def test_relational_models(conv: type[nn.Module], split: bool) -> None:
    torch.manual_seed(0)
    model = _Typed(conv).eval()
    graphs = [
        (torch.randn(n, 8), torch.randint(n, (2, e)), torch.randint(4, (e,)))
        for n, e in [(40, 200), (3, 5), (1, 0), (200, 150_000)]
    ]
    graphs.append((*graphs[0][:2], torch.full((200,), 3)))  # types without edges
    opt = gnnfx.optimize(model, "fp32", graphs[0])
    assert ("split_edges" in opt.ir()) == split
    for arguments in graphs:
        with torch.no_grad():
            want, got = model(*arguments), opt(*arguments)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max() or 1))
    kept = graphs[0][2].clone()
    graphs[0][2].copy_((kept + 1) % 4)  # another graph in the same memory
    with torch.no_grad():
        torch.testing.assert_close(opt(*graphs[0]), model(*graphs[0]), rtol=1e-5, atol=1e-4)


def test_edges_to_nodes_that_there_are_not() -> None:
    torch.manual_seed(0)
    model = _Typed(RGCNConv).eval()
    x, edge_index, edge_type = torch.randn(40, 8), torch.randint(40, (2, 99)), torch.arange(99) % 4
    opt = gnnfx.optimize(model, "fp32", (x, edge_index, edge_type))
    for wrong in (40, -1):
        edge_index[1, 7] = wrong
        with pytest.raises(InputError, match="edge_index"):
            opt(x, edge_index, edge_type)
