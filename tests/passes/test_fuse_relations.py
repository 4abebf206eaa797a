"""fuse-relations: aggregations with linear layers that are added up, one op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import RGCNConv, SAGEConv

import gnnfx
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, parse
from gnnfx.passes.fuse_relations import FuseRelations
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

SUM = """\
program relations(x: f32[N, 8], dst: i64[E], src: i64[E], p: i64[F], q: i64[F], n: int[N], r: f32[N, 4])
  w: f32[4, 8] = param('w')
  v: f32[4, 8] = param('v')
  b: f32[4] = param('b')
  csr: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  rowptr: i32[N + 1] = getitem(csr, 0)
  src_1: i32[E] = getitem(csr, 1)
  csr_1: (i32[N + 1], i32[F], i32[F]) = compress(p, q, n)
  rowptr_1: i32[N + 1] = getitem(csr_1, 0)
  src_2: i32[F] = getitem(csr_1, 1)
  a: f32[N, 8] = aggregate(x, rowptr, src_1, None, 'mean')  # conv
  l: f32[N, 4] = linear(a, w, None, r)  # conv
  m: f32[N, 4] = linear(x, v)  # conv
  y: f32[N, 4] = aggregate(m, rowptr_1, src_2, None, 'mean', bias=b, residual=l, activation='relu')  # conv
  return (y,)
"""  # noqa: E501


def _inputs(nodes: int = 9) -> tuple[Tensor | int, ...]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(nodes, (count,), generator=generator) for count in (20, 20, 3, 3)]
    x, residual = (torch.randn(nodes, width, generator=generator) for width in (8, 4))
    return x, *ids, nodes, residual


def _fill(*programs: Program) -> None:
    for program in programs:
        generator = torch.Generator().manual_seed(1)
        for name, shape in {"w": (4, 8), "v": (4, 8), "b": (4,)}.items():
            program.tensors[name] = torch.randn(shape, generator=generator)


def _edited(edits: dict[str, str]) -> str:
    """SUM with each text replaced by another."""
    text = SUM
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    return text


def test_both_orders_become_one_op() -> None:
    before, after, ctx = rewrite(FuseRelations(), SUM)
    fused = next(iter(after.find("aggregate_linear_sum"))).args
    assert not {"linear", "aggregate"} & {i.op for i in after.instrs}
    assert [i.name for i in fused["x"]] == ["x", "x"]
    assert [i.name for i in fused["weight"]] == ["w", "v"]
    assert [i.name for i in fused["rowptr"]] == ["rowptr", "rowptr_1"]
    assert fused["residual"].name == "r"
    assert fused["bias"].name == "b"
    assert [r.module for r in ctx.remarks if r.done] == ["conv"]
    _fill(before, after)
    check_values(before, after, *_inputs())
    check_second_run(FuseRelations(), after)
    assert dump(parse(dump(after))) == dump(after)
    assert body(after)[-1] == "aggregate_linear_sum"


@pytest.mark.parametrize(
    ("old", "new", "ops"),
    [
        pytest.param("return (y,)", "return (y, l)", 2, id="read-elsewhere"),
        pytest.param("return (y,)", "return (y, m)", 1, id="inner-read-elsewhere"),
        pytest.param("linear(a, w, None, r)", "linear(a, w, b, r)", 2, id="bias-between"),
        pytest.param("w, None, r)", "w, None, r, 'relu')", 2, id="activation-between"),
        pytest.param("rowptr, src_1, None, 'mean')", "rowptr, src_1)", 2, id="sum-and-mean"),
        pytest.param("rowptr, src_1, None, 'mean')", "rowptr, src_1, None, 'max')", 1, id="max"),
    ],
)
def test_terms_that_cannot_be_added_up(old: str, new: str, ops: int) -> None:
    assert old in SUM
    before, after, _ = rewrite(FuseRelations(), SUM.replace(old, new))
    sums = list(after.find("aggregate_linear_sum"))
    assert len(sums) == ops
    assert all(len(i.args["x"]) == 1 for i in sums)
    _fill(before, after)
    check_values(before, after, *_inputs())


OWN = {"linear(a, w, None, r)": "linear(x, w, None, r)"}
BIASED = {**OWN, "linear(x, w, None, r)": "linear(x, w, b, r)", ", bias=b": ""}


@pytest.mark.parametrize(
    ("edits", "own"),
    [
        pytest.param(OWN, True, id="plain"),
        pytest.param(BIASED, True, id="with-bias"),
        pytest.param({**OWN, "w, None, r)": "w, b, r)"}, False, id="two-biases"),
        pytest.param({**OWN, "w, None, r)": "w, None, r, 'relu')"}, False, id="activation"),
        pytest.param({**OWN, "return (y,)": "return (y, l)"}, False, id="read-elsewhere"),
    ],
)
def test_a_layer_of_the_nodes_themselves_belongs_to_the_sum(
    edits: dict[str, str], own: bool
) -> None:
    before, after, _ = rewrite(FuseRelations(), _edited(edits))
    fused = next(iter(after.find("aggregate_linear_sum"))).args
    assert (fused["own_weight"] is not None) is own
    assert fused["residual"].name == ("r" if own else "l")
    assert fused["bias"].name == "b" or not own
    _fill(before, after)
    check_values(before, after, *_inputs())
    assert dump(parse(dump(after))) == dump(after)


ABOVE = {
    "bias=b, residual=l, activation='relu')  # conv": "residual=l)  # conv\n"
    "  z: f32[N, 4] = linear(x, w, b, y, 'relu')  # conv",
    "return (y,)": "return (z,)",
}


@pytest.mark.parametrize(
    ("edits", "own"),
    [
        pytest.param(ABOVE, True, id="plain"),
        pytest.param({**ABOVE, "residual=l)": "bias=b, residual=l)"}, False, id="finished-before"),
        pytest.param({**ABOVE, "(z,)": "(z, y)"}, False, id="read-elsewhere"),
    ],
)
def test_a_layer_added_to_the_sum_belongs_to_it(edits: dict[str, str], own: bool) -> None:
    before, after, _ = rewrite(FuseRelations(), _edited(edits))
    fused = next(iter(after.find("aggregate_linear_sum"))).args
    assert (fused["own_weight"] is not None) is own
    assert fused["residual"].name == "r"
    assert len(fused["x"]) == 2
    assert ("linear" in {i.op for i in after.instrs}) is not own
    _fill(before, after)
    check_values(before, after, *_inputs())
    check_second_run(FuseRelations(), after)


@pytest.mark.parametrize("outputs", [32, 64, 40])
@pytest.mark.parametrize("edges", [40, 3000])
def test_sage_layers_on_few_and_many_edges(outputs: int, edges: int) -> None:
    torch.manual_seed(0)
    model = SAGEConv(48, outputs).eval()
    x, edge_index = torch.randn(400, 48), torch.randint(400, (2, edges))
    optimized = gnnfx.optimize(model, "fp32", (x, edge_index))
    assert "own_weight=" in optimized.ir()
    with torch.no_grad():
        want = model(x, edge_index)
    torch.testing.assert_close(optimized(x, edge_index), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggr", ["mean", "sum"])
@pytest.mark.parametrize("outputs", [4, 40])
def test_relational_layer_with_few_edges_a_relation(aggr: str, outputs: int) -> None:
    torch.manual_seed(0)
    nodes, edges, relations = 300, 500, 8
    model = RGCNConv(16, outputs, relations, aggr=aggr).eval()
    x, edge_index = torch.randn(nodes, 16), torch.randint(nodes, (2, edges))
    kinds = torch.randint(relations - 1, (edges,))  # the last relation has no edges
    optimized = gnnfx.optimize(model, "fp32", (x, edge_index, kinds))
    assert "aggregate_linear_sum" in optimized.ir()
    torch.testing.assert_close(optimized(x, edge_index, kinds), model(x, edge_index, kinds))
    x.requires_grad_()
    weights = torch.randn(nodes, outputs)
    expected = torch.autograd.grad((model(x, edge_index, kinds) * weights).sum(), x)
    found = torch.autograd.grad((optimized(x, edge_index, kinds) * weights).sum(), x)
    torch.testing.assert_close(found, expected)
