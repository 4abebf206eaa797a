"""distribute-linear and unbind-axes: what they rewrite and leave, and that values stay."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg

import gnnfx
from gnnfx.ir.text import parse
from gnnfx.pass_manager import PassContext
from gnnfx.passes.distribute_linear import DistributeLinear
from gnnfx.passes.unbind_axes import UnbindAxes
from tests.passes.rewriting import body, check_second_run, check_values, dump, edges, rewrite

EDGE_CONV = """\
program edge_conv(x: f32[N, 8], src: i64[E], dst: i64[E])
  w: f32[4, 16] = param('w')
  b: f32[4] = param('b')
  n: int[N] = aten.sym_size.int(x, 0)
  i: f32[E, 8] = gather(x, dst)
  j: f32[E, 8] = gather(x, src)
  d: f32[E, 8] = aten.sub.Tensor(j, i)
  c: f32[E, 16] = aten.cat.default([i, d], -1)
  y: f32[E, 4] = aten.linear.default(c, w, b)  # nn.0
  z: f32[N, 4] = scatter(y, dst, n, 'max')
  return (z,)
"""
DISTRIBUTED = """\
program edge_conv(x: f32[N, 8], src: i64[E], dst: i64[E])
  b: f32[4] = param('b')
  w_0: f32[4, 8] = param('w.0')  # nn.0
  w_1: f32[4, 8] = param('w.1')  # nn.0
  n: int[N] = aten.sym_size.int(x, 0)
  linear_default: f32[N, 4] = aten.linear.default(x, w_0, b)  # nn.0
  linear_default_1: f32[N, 4] = aten.linear.default(x, w_1)  # nn.0
  gather_default: f32[E, 4] = gather(linear_default, dst)  # nn.0
  gather_default_1: f32[E, 4] = gather(linear_default_1, src)  # nn.0
  add_tensor: f32[E, 4] = aten.add.Tensor(gather_default, gather_default_1)  # nn.0
  z: f32[N, 4] = scatter(add_tensor, dst, n, 'max')
  return (z,)
"""
SCALED = """\
program scaled(x: f32[N, 8], h: f32[N, 16], s: f32[N, 1], t: f32[N, 1], k: f32[N, 1, 1])
  w: f32[4, 56] = param('w')
  b: f32[4] = param('b')
  p: f32[N, 16] = aten.mul.Tensor(h, s)
  q: f32[N, 16] = aten.mul.Tensor(t, h)
  c: f32[N, 56] = aten.cat.default([x, h, p, q], 1)
  y: f32[N, 4] = aten.linear.default(c, w, b)
  return (y,)
"""
TOWER = """\
program tower(x: f32[N, 8], src: i64[E], dst: i64[E], s: f32[N, 1, 1])
  n: int[N] = aten.sym_size.int(x, 0)
  v: f32[N, 1, 8] = aten.view.default(x, [-1, 1, 8])
  m: f32[E, 1, 8] = gather(v, src)
  o: f32[E, 1, 8] = gather(v, dst)
  c: f32[E, 1, 16] = aten.cat.default([m, o], -1)
  r: f32[N, 1, 16] = scatter(c, dst, n, 'mean')
  t: f32[N, 1, 16] = aten.mul.Tensor(r, s)
  u: f32[N, 16] = aten.select.int(t, 1, 0)
  return (u,)
"""


def test_a_product_of_gathered_rows_becomes_a_gather_of_products() -> None:
    before, after, _ = rewrite(DistributeLinear(), EDGE_CONV)
    assert dump(after) == DISTRIBUTED
    check_values(before, after, torch.randn(6, 8), *edges(6, 20))
    check_second_run(DistributeLinear(), after)


def test_edge_features_keep_a_product_of_their_own() -> None:
    text = EDGE_CONV.replace("dst: i64[E])", "dst: i64[E], e: f32[E, 3])")
    text = text.replace("[4, 16]", "[4, 19]").replace("[i, d]", "[i, d, e]")
    text = text.replace("c: f32[E, 16]", "c: f32[E, 19]")
    before, after, _ = rewrite(DistributeLinear(), text)
    assert "aten.linear.default(e, w_2)" in dump(after)
    check_values(before, after, torch.randn(6, 8), *edges(6, 20), torch.randn(20, 3))


def test_rows_that_are_gathered_alike_add_up_before() -> None:
    text = EDGE_CONV.replace("src: i64[E],", "pos: f32[N, 8], src: i64[E],")
    text = text.replace("gather(x, dst)", "gather(pos, src)")
    before, after, _ = rewrite(DistributeLinear(), text)
    assert body(after).count("gather") == 1
    pos = torch.randn(9, 8)
    check_values(before, after, torch.randn(9, 8), pos, *edges(9, 30))


def test_scaled_copies_are_not_joined() -> None:
    before, after, _ = rewrite(DistributeLinear(), SCALED)
    assert body(after).count("aten.linear.default") == 4
    assert "aten.cat.default" not in body(after)
    values = [torch.randn(6, *shape) for shape in [(8,), (16,), (1,), (1,), (1, 1)]]
    check_values(before, after, *values, rtol=1e-4)
    check_second_run(DistributeLinear(), after)


def test_a_bias_is_not_scaled() -> None:
    text = SCALED.replace("[x, h, p, q]", "[p, q]").replace("56", "32")
    before, after, _ = rewrite(DistributeLinear(), text)
    assert after is not before
    check_values(before, after, *(torch.randn(6, *s) for s in [(8,), (16,), (1,), (1,), (1, 1)]))


def test_the_example_decides_whether_it_pays() -> None:
    """Many nodes and few edges: a product an edge is the lesser work."""
    program, ctx = parse(EDGE_CONV), PassContext()
    few = torch.zeros(5, dtype=torch.int64)
    ctx.example = torch.zeros(1000, 8), few, few
    assert DistributeLinear().run(program, ctx) is program
    assert "moves more than joining them" in ctx.remarks[0].text


def test_joined_rows_that_nothing_gathers_stay() -> None:
    text = SCALED.replace("[x, h, p, q]", "[x, h, h, h]")
    before, after, ctx = rewrite(DistributeLinear(), text)
    assert after is before
    assert ctx.remarks == []


def test_an_axis_of_one_goes() -> None:
    before, after, _ = rewrite(UnbindAxes(), TOWER)
    assert all("1," not in str(i.type) for i in after.instrs if i.op in ("gather", "scatter"))
    check_values(before, after, torch.randn(6, 8), *edges(6, 20), torch.randn(6, 1, 1))
    check_second_run(UnbindAxes(), after)


@pytest.mark.parametrize("op", ["aten.exp.default(r)", "aten.sum.dim_IntList(r, [1], True)"])
def test_an_axis_of_an_unknown_op_stays(op: str) -> None:
    before, after, _ = rewrite(UnbindAxes(), TOWER.replace("aten.mul.Tensor(r, s)", op))
    assert after is before


TOWERS = """\
program towers(x: f32[N, 8], y: f32[N, 16], src: i64[E], dst: i64[E], s: f32[N, 1, 1])
  w: f32[4, 16] = param('w')
  v: f32[4, 16] = param('v')
  n: int[N] = aten.sym_size.int(x, 0)
  a: f32[N, 1, 8] = aten.unsqueeze.default(x, 1)
  b: f32[N, 2, 8] = aten.repeat.default(a, [1, 2, 1])
  c: f32[N, 2, 8] = aten.view.default(y, [-1, 2, 8])
  d: f32[E, 2, 8] = gather(b, src)
  e: f32[E, 2, 8] = gather(c, dst)
  f: f32[E, 2, 16] = aten.cat.default([d, e], -1)
  g: f32[E, 16] = aten.select.int(f, 1, 0)
  h: f32[E, 16] = aten.select.int(f, 1, -1)
  i: f32[E, 4] = aten.linear.default(g, w)
  j: f32[E, 4] = aten.linear.default(h, v)
  k: f32[E, 2, 4] = aten.stack.default([i, j], 1)
  l: f32[N, 2, 4] = scatter(k, dst, n, 'max')
  m: f32[N, 2, 4] = aten.mul.Tensor(l, s)
  o: f32[N, 4] = aten.select.int(m, 1, 0)
  p: f32[N, 4] = aten.select.int(m, -2, 1)
  q: f32[N, 8] = aten.cat.default([o, p], 1)
  return (q,)
"""


def test_towers_are_matrices() -> None:
    before, after, _ = rewrite(UnbindAxes(), TOWERS)
    assert all("2, " not in str(i.type) for i in after.instrs)
    values = (torch.randn(6, 8), torch.randn(6, 16), *edges(6, 20), torch.randn(6, 1, 1))
    check_values(before, after, *values)
    check_second_run(UnbindAxes(), after)


def test_towers_that_are_read_together_are_computed_together() -> None:
    before, after, _ = rewrite(UnbindAxes(), TOWERS.replace("return (q,)", "return (q, l)"))
    assert body(after).count("scatter") == 1
    values = (torch.randn(6, 8), torch.randn(6, 16), *edges(6, 20), torch.randn(6, 1, 1))
    check_values(before, after, *values)


@pytest.mark.parametrize("divide", [True, False])
def test_pna_with_towers(divide: bool) -> None:
    torch.manual_seed(0)
    scalers = ["identity", "amplification", "attenuation"]
    layer = pyg.PNAConv(
        *(12, 8, ["mean", "min", "max", "std"], scalers, torch.tensor([1, 4, 9, 4])),
        towers=4,
        edge_dim=3,
        divide_input=divide,
    ).eval()
    inputs = (torch.randn(30, 12), torch.stack(edges(30, 200)), torch.randn(200, 3))
    module = gnnfx.optimize(layer, "fp32", inputs)
    assert module.ir().count("= aggregate_many(") == 4
    assert "stack" not in module.ir()
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs), layer(*inputs), rtol=1e-4, atol=1e-4)
