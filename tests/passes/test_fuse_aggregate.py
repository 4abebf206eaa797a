"""fuse-aggregate: what it lowers, what it leaves alone and why, and that values survive."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.fuse_aggregate import FuseAggregate
from tests.passes.rewriting import body, check_second_run, check_values, dump, edges, rewrite

BEFORE = """\
program weighted_sum(x: f32[N, 8], src: i64[E], dst: i64[E], w: f32[E])
  n: int[N] = aten.sym_size.int(x, 0)
  m: f32[E, 8] = gather(x, src)  # conv1
  c: f32[E, 1] = aten.view.default(w, [-1, 1])  # conv1
  s: f32[E, 8] = aten.mul.Tensor(m, c)  # conv1
  y: f32[N, 8] = scatter(s, dst, n, 'sum')  # conv1.aggr
  return (y,)
"""
AFTER = """\
program weighted_sum(x: f32[N, 8], src: i64[E], dst: i64[E], w: f32[E])
  n: int[N] = aten.sym_size.int(x, 0)
  compress_default: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)  # conv1.aggr
  getitem: i32[N + 1] = getitem(compress_default, 0)  # conv1.aggr
  getitem_1: i32[E] = getitem(compress_default, 1)  # conv1.aggr
  getitem_2: i32[E] = getitem(compress_default, 2)  # conv1.aggr
  gather_default: f32[E] = gather(w, getitem_2)  # conv1.aggr
  aggregate_default: f32[N, 8] = aggregate(x, getitem, getitem_1, gather_default, 'sum')  # conv1.aggr
  return (aggregate_default,)
"""  # noqa: E501


def test_weighted_sum_becomes_one_aggregate() -> None:
    _, after, _ = rewrite(FuseAggregate(), BEFORE)
    assert dump(after) == AFTER


def test_a_column_is_a_weight_too() -> None:
    text = BEFORE.replace("w: f32[E])", "w: f32[E, 1])")
    text = text.replace("aten.view.default(w, [-1, 1])", "aten.reciprocal.default(w)")
    before, after, _ = rewrite(FuseAggregate(), text)
    (aggregate,) = after.find("aggregate")
    assert aggregate.args["weight"].shape == ("E",)
    check_values(before, after, torch.randn(9, 8), *edges(9, 40), torch.rand(40, 1) + 1)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_values_survive(reduce: str) -> None:
    before, after, _ = rewrite(FuseAggregate(), BEFORE.replace("'sum'", f"'{reduce}'"))
    assert "aten.mul.Tensor" not in body(after)
    src, dst = edges(6, 20)
    check_values(before, after, torch.randn(6, 8), src, dst, torch.rand(20))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param("'sum'", "'mul'", "reduce=mul: only sum", id="product"),
        pytest.param("f32", "f64", "messages are torch.float64", id="float64"),
    ],
)
def test_leaves_alone_and_says_why(old: str, new: str, reason: str) -> None:
    before, after, ctx = rewrite(FuseAggregate(), BEFORE.replace(old, new))
    assert after is before
    assert [remark.instr for remark in ctx.remarks] == ["y"]
    assert reason in ctx.remarks[0].text


def test_messages_that_are_no_gather_are_read_through_the_permutation() -> None:
    text = BEFORE.replace("aten.mul.Tensor(m, c)", "aten.exp.default(m)")
    before, after, _ = rewrite(FuseAggregate(), text)
    assert "aggregate(s, getitem, getitem_2, None, 'sum')" in dump(after)
    src, dst = edges(6, 20)
    check_values(before, after, torch.randn(6, 8), src, dst, torch.rand(20))


def test_an_edge_softmax_is_computed_in_the_order_of_destinations() -> None:
    text = """\
program attention(x: f32[N, 2, 4], a: f32[N, 2], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(x, 0)
  g: f32[E, 2] = gather(a, src)
  l: f32[E, 2] = aten.leaky_relu.default(g, 0.2)
  w: f32[E, 2] = edge_softmax(l, dst, n)
  u: f32[E, 2, 1] = aten.unsqueeze.default(w, -1)
  m: f32[E, 2, 4] = gather(x, src)
  s: f32[E, 2, 4] = aten.mul.Tensor(u, m)
  y: f32[N, 2, 4] = scatter(s, dst, n, 'sum')
  return (y,)
"""
    before, after, _ = rewrite(FuseAggregate(), text)
    assert "segment_softmax" in dump(after)
    assert "edge_softmax" not in dump(after)
    src, dst = edges(6, 20)
    check_values(before, after, torch.randn(6, 2, 4), torch.randn(6, 2), src, dst)


def test_structure_is_left_to_the_structure_part() -> None:
    text = """\
program degree(x: f32[N, 8], dst: i64[E], w: f32[E])
  n: int[N] = aten.sym_size.int(x, 0)
  d: f32[N] = scatter(w, dst, n, 'sum')
  c: f32[N, 1] = aten.view.default(d, [-1, 1])
  m: f32[E, 8] = gather(x, dst)
  y: f32[N, 8] = aten.mul.Tensor(x, c)
  return (y, m)
"""
    before, after, ctx = rewrite(FuseAggregate(), text)
    assert after is before
    assert ctx.remarks == []


def test_second_run_changes_nothing() -> None:
    _, once, _ = rewrite(FuseAggregate(), BEFORE)
    check_second_run(FuseAggregate(), once)
