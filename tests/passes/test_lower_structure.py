"""lower-degrees and fuse-self-loops: structure from one sort, with the values it had before."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GraphConv, SGConv

import gnnfx
from gnnfx.errors import InputError
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, parse, restore
from gnnfx.pass_manager import PassContext
from gnnfx.passes.fuse_self_loops import FuseSelfLoops
from gnnfx.passes.lower_degrees import LowerDegrees
from gnnfx.passes.separate_norm import SeparateNorm
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

DEGREE = """\
program degree(x: f32[N, 4], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(x, 0)
  e: int[E] = aten.sym_size.int(src, 0)
  o: f32[E] = aten.ones.default([e])
  d: f32[N] = scatter(o, dst, n, 'sum')
  c: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  r: i32[N + 1] = getitem(c, 0)
  s: i32[E] = getitem(c, 1)
  y: f32[N, 4] = aggregate(x, r, s)
  return (y, d)
"""
LOOPS = """\
program loops(x: f32[N, 4], edge_index: i64[2, E])
  n: int[N] = aten.sym_size.int(x, 0)
  a: i64[E] = aten.select.int(edge_index, 0, 0)
  b: i64[E] = aten.select.int(edge_index, 0, 1)
  k: bool[E] = aten.ne.Tensor(a, b)
  e: i64[2, D0] = aten.index.Tensor(edge_index, [None, k])
  i: i64[N] = aten.arange.start(0, n)
  v: i64[1, N] = aten.view.default(i, [1, -1])
  l: i64[2, N] = aten.repeat.default(v, [2, 1])
  f: i64[2, D0 + N] = aten.cat.default([e, l], 1)
  src: i64[D0 + N] = aten.select.int(f, 0, 0)
  dst: i64[D0 + N] = aten.select.int(f, 0, 1)
  c: (i32[N + 1], i32[D0 + N], i32[D0 + N]) = compress(src, dst, n)
  r: i32[N + 1] = getitem(c, 0)
  s: i32[D0 + N] = getitem(c, 1)
  y: f32[N, 4] = aggregate(x, r, s)
  return (y,)
"""
EDGES = torch.tensor([[0, 1, 1, 2, 2, 2, 4, 4], [0, 1, 1, 0, 3, 0, 4, 3]])  # loops, duplicates


def test_degrees_come_from_row_pointers() -> None:
    before, after, _ = rewrite(LowerDegrees(), DEGREE)
    assert "scatter" not in body(after)
    check_values(before, after, torch.randn(6, 4), *EDGES)
    check_second_run(LowerDegrees(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("scatter(o, dst", "scatter(o, src", id="of-other-ends"),
        pytest.param("'sum'", "'max'", id="no-sum"),
        pytest.param("aten.ones", "aten.zeros", id="no-ones"),
    ],
)
def test_other_sums_stay(old: str, new: str) -> None:
    before, after, _ = rewrite(LowerDegrees(), DEGREE.replace(old, new))
    assert after is before


def test_self_loops_are_replaced_by_the_sort() -> None:
    before, after, _ = rewrite(FuseSelfLoops(), LOOPS)
    ops = body(after)
    assert "compress_self_loops" in ops
    assert not {"aten.cat.default", "aten.index.Tensor", "aten.ne.Tensor", "compress"} & set(ops)
    check_values(before, after, torch.randn(6, 4), EDGES)
    check_second_run(FuseSelfLoops(), after)
    assert dump(parse(dump(after))) == dump(after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("ne.Tensor(a, b)", "eq.Tensor(a, b)", id="keeps-the-loops-alone"),
        pytest.param("ne.Tensor(a, b)", "ne.Tensor(a, a)", id="another-mask"),
        pytest.param("arange.start(0, n)", "arange.start_step(0, n, 2)", id="some-nodes"),
        pytest.param(
            "compress(src, dst, n)", "compress(src, src, n)", id="sources-as-destinations"
        ),
        pytest.param("cat.default([e, l], 1)", "cat.default([l, e], 1)", id="loops-first"),
    ],
)
def test_other_edge_lists_are_sorted_as_they_are(old: str, new: str) -> None:
    before, after, _ = rewrite(FuseSelfLoops(), LOOPS.replace(old, new))
    assert after is before


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        pytest.param("return (y, dst)", "also read by", id="edge-list"),
        pytest.param("p: i32[D0 + N] = getitem(c, 2)\n  return (y, p)", "the order", id="order"),
    ],
)
def test_edge_lists_that_are_read_stay_and_say_why(new: str, reason: str) -> None:
    before, after, ctx = rewrite(FuseSelfLoops(), LOOPS.replace("return (y,)", new))
    assert after is before
    assert reason in ctx.remarks[0].text


def test_float_rows_keep_the_weight_of_their_source() -> None:
    before = parse(
        """\
program norm(x: f32[N, 4], c: f32[N], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(x, 0)
  k: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  r: i32[N + 1] = getitem(k, 0)
  s: i32[E] = getitem(k, 1)
  p: i32[E] = getitem(k, 2)
  d: i64[E] = gather(dst, p)
  u: f32[E] = gather(c, s)
  v: f32[E] = gather(c, d)
  w: f32[E] = aten.mul.Tensor(u, v)
  y: f32[N, 4] = aggregate(x, r, s, w)
  return (y,)
"""
    )
    after = SeparateNorm(sources=False).run(before, PassContext())
    aggregate = next(after.find("aggregate"))
    assert aggregate.args["weight"].name == "u"
    assert aggregate.args["row_scale"].name == "c"
    check_values(before, after, torch.randn(6, 4), torch.rand(6), *EDGES)
    check_second_run(SeparateNorm(sources=False), after)


class _Sym(nn.Module):
    """Norm and messages by hand, with self-loops counted in the degree."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gat = GCNConv(4, 8), GATConv(8, 4, heads=2)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.gat(self.conv(x, edge_index).relu(), edge_index)
        return out


MODELS = {
    "gcn+gat": _Sym(),
    "sgc": SGConv(4, 4, K=2),
    "graph": GraphConv(4, 4),
    "no-loops": GCNConv(4, 4, add_self_loops=False),
}


def _structure_ops(module: gnnfx.OptimizedModule) -> set[str]:
    program: Program = restore(module.ir(), module.tensors())
    return {i.op for i in program.instrs}


@pytest.mark.parametrize("policy", ["fp32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_models_on_graphs_with_and_without_loops(name: str, policy: str) -> None:
    model = MODELS[name].eval()
    opt = gnnfx.optimize(model, policy, (torch.randn(6, 4), EDGES))
    if name != "graph":
        assert not {"aten.cat.default", "scatter"} & _structure_ops(opt)
    generator = torch.Generator().manual_seed(0)
    for nodes, count in [(6, 0), (1, 3), (30, 400)]:
        x = torch.randn(nodes, 4, generator=generator)
        edge_index = torch.randint(nodes, (2, count), generator=generator)
        with torch.no_grad():
            expected = model(x, edge_index)
            gap = (opt(x, edge_index) - expected).abs().max()
        assert gap <= (1e-5 if policy == "fp32" else 0.1) * max(1.0, float(expected.abs().max()))
    with pytest.raises(InputError, match="holds node 6"):
        opt(torch.randn(6, 4), EDGES.clone().fill_(6))
