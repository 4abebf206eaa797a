"""fuse-reductions: which reductions share a sweep, what moves out of them, and that values stay."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.fuse_reductions import FuseReductions
from tests.passes.rewriting import body, check_second_run, check_values, dump, edges, rewrite

BEFORE = """\
program pna(p: f32[N, 8], q: f32[N, 8], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(p, 0)
  i: f32[E, 8] = gather(p, dst)
  j: f32[E, 8] = gather(q, src)
  m: f32[E, 8] = aten.add.Tensor(i, j)
  a: f32[N, 8] = scatter(m, dst, n, 'mean')  # aggr
  b: f32[N, 8] = scatter(m, dst, n, 'max')
  u: f32[E, 8] = aten.mul.Tensor(m, m)
  v: f32[N, 8] = scatter(u, dst, n, 'mean')
  w: f32[N, 8] = aten.mul.Tensor(a, a)
  x: f32[N, 8] = aten.sub.Tensor(v, w)
  c: f32[N, 8] = aten.clamp.default(x, 1e-05)
  s: f32[N, 8] = aten.sqrt.default(c)
  l: bool[N, 8] = aten.le.Scalar(s, 0.0031622776601683794)
  f: f32[N, 8] = aten.masked_fill.Scalar(s, l, 0.0)
  y: f32[N, 24] = aten.cat.default([b, a, f], -1)
  return (y,)
"""
AFTER = """\
program pna(p: f32[N, 8], q: f32[N, 8], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(p, 0)
  compress_default: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)  # aggr
  getitem: i32[N + 1] = getitem(compress_default, 0)  # aggr
  getitem_1: i32[E] = getitem(compress_default, 1)  # aggr
  aggregate_many_default: f32[N, 24] = aggregate_many(q, getitem, getitem_1, 'max,mean,std', p)  # aggr
  return (aggregate_many_default,)
"""  # noqa: E501


def _values() -> list[torch.Tensor]:
    return [torch.randn(9, 8), torch.randn(9, 8), *edges(7, 30)]  # two nodes without edges


def test_one_op_writes_what_was_joined() -> None:
    before, after, _ = rewrite(FuseReductions(), BEFORE)
    assert dump(after) == AFTER
    check_values(before, after, *_values(), rtol=1e-4)
    check_second_run(FuseReductions(), after)


def test_reductions_that_are_not_joined_are_parts_of_one() -> None:
    before, after, _ = rewrite(FuseReductions(), BEFORE.replace("return (y,)", "return (y, x, a)"))
    assert body(after).count("aggregate_many") == 1
    check_values(before, after, *_values(), rtol=1e-4)


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_a_lone_reduction_lets_the_destination_out(reduce: str) -> None:
    text = BEFORE[: BEFORE.index("  b: ")].replace("mean", reduce) + "  return (a,)\n"
    before, after, _ = rewrite(FuseReductions(), text)
    assert f"aggregate_many(q, getitem, getitem_1, '{reduce}', p)" in dump(after)
    check_values(before, after, *_values())


def test_a_lone_reduction_of_gathered_rows_is_an_aggregate() -> None:
    text = BEFORE[: BEFORE.index("  b: ")].replace("scatter(m", "scatter(j") + "  return (a,)\n"
    before, after, _ = rewrite(FuseReductions(), text)
    assert after is before


def _with_edges(width: int) -> str:
    """The messages with a term of edges: a layer, or features as wide as the messages."""
    text = BEFORE.replace("dst: i64[E])", f"dst: i64[E], e: f32[E, {width}])")
    made = "  g: f32[E, 8] = aten.linear.default(e, k)\n" if width != 8 else ""
    text = text.replace("  n: int", "  k: f32[8, 3] = param('k')\n  n: int") if made else text
    own = "g" if made else "e"
    total = f"  t: f32[E, 8] = aten.add.Tensor(i, {own})\n  m: f32[E, 8] = aten.add.Tensor(t, j)"
    return text.replace("  m: f32[E, 8] = aten.add.Tensor(i, j)", made + total)


@pytest.mark.parametrize("width", [3, 8])
def test_features_of_edges_are_read_where_they_are_reduced(width: int) -> None:
    before, after, _ = rewrite(FuseReductions(), _with_edges(width))
    (many,) = after.find("aggregate_many")
    assert many.args["edge"] == after.inputs[4]
    assert many.args["x_dst"] == after.inputs[0]
    assert "gather" not in body(after)
    check_values(before, after, *_values(), torch.randn(30, width), rtol=1e-4)
    check_second_run(FuseReductions(), after)


def test_a_lone_reduction_with_features_of_edges_is_for_messages() -> None:
    text = _with_edges(3)
    before, after, _ = rewrite(FuseReductions(), text[: text.index("  b: ")] + "  return (a,)\n")
    assert after is before


def test_messages_of_their_own_are_read_once() -> None:
    text = BEFORE.replace("aten.add.Tensor(i, j)", "aten.mul.Tensor(i, j)")
    before, after, _ = rewrite(FuseReductions(), text)
    assert "aggregate_many(m, getitem, getitem_1, 'max,mean,std', None)" in dump(after)
    check_values(before, after, *_values(), rtol=1e-4)


def test_another_least_deviation_is_not_pygs() -> None:
    before, after, _ = rewrite(FuseReductions(), BEFORE.replace("1e-05", "1e-03"))
    assert "'mean,var,max'" in dump(after)
    check_values(before, after, *_values(), rtol=1e-4)
