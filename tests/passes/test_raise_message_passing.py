"""raise-message-passing: every ATen spelling, and what does not mean message passing."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.raise_message_passing import RaiseMessagePassing
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

SCATTER = """\
program sum(x: f32[N, 8], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(x, 0)
  e: int[E] = aten.sym_size.int(src, 0)
  m: f32[E, 8] = aten.index_select.default(x, -2, src)
  v: i64[E, 1] = aten.view.default(dst, [-1, 1])
  i: i64[E, 8] = aten.expand.default(v, [e, 8])
  z: f32[N, 8] = aten.new_zeros.default(m, [n, 8])
  y: f32[N, 8] = aten.scatter_add.default(z, 0, i, m)
  return (y,)
"""
SPELLINGS = {
    "scatter_add": "aten.scatter_add.default(z, 0, i, m)",
    "scatter_reduce_sum": "aten.scatter_reduce.two(z, 0, i, m, 'sum')",
    "scatter_reduce_amax": "aten.scatter_reduce.two(z, 0, i, m, 'amax', include_self=False)",
    "scatter_reduce_mean": "aten.scatter_reduce.two(z, 0, i, m, 'mean', include_self=False)",
    "scatter_reduce_prod": "aten.scatter_reduce.two(z, 0, i, m, 'prod', include_self=False)",
    "index_add": "aten.index_add.default(z, 0, dst, m)",
    "index_put": "aten.index_put.default(z, [dst], m, True)",
}


@pytest.mark.parametrize("call", SPELLINGS.values(), ids=SPELLINGS)
def test_each_spelling_is_raised_and_keeps_its_values(call: str) -> None:
    text = SCATTER.replace(SPELLINGS["scatter_add"], call)
    before, after, _ = rewrite(RaiseMessagePassing(), text)
    assert [op for op in body(after) if not op.startswith("aten.sym")] == ["gather", "scatter"]
    src, dst = edges(5, 17)
    check_values(before, after, torch.randn(5, 8), src, dst)
    check_second_run(RaiseMessagePassing(), after)


def test_zeros_may_be_made_like_a_feature() -> None:
    zeros = "aten.zeros_like.default(x)"
    text = SCATTER.replace("aten.new_zeros.default(m, [n, 8])", zeros)
    before, after, _ = rewrite(RaiseMessagePassing(), text)
    assert [op for op in body(after) if not op.startswith("aten.sym")] == ["gather", "scatter"]
    src, dst = edges(5, 17)
    check_values(before, after, torch.randn(5, 8), src, dst)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param(
            "aten.new_zeros.default(m, [n, 8])\n"
            "  y: f32[N, 8] = aten.scatter_add.default(z, 0, i, m)",
            "aten.new_ones.default(m, [n, 8])\n"
            "  y: f32[N, 8] = aten.scatter_reduce.two(z, 0, i, m, 'amax', include_self=False)",
            "is not all zeros",
            id="starts-from-ones",
        ),
        pytest.param(
            "aten.scatter_add.default(z, 0, i, m)",
            "aten.scatter_reduce.two(z, 0, i, m, 'amax')",
            "includes the initial values",
            id="include-self",
        ),
        pytest.param(
            "aten.scatter_add.default(z, 0, i, m)",
            "aten.index_add.default(z, 0, dst, m, alpha=2)",
            "alpha=2",
            id="alpha",
        ),
    ],
)
def test_leaves_alone_and_says_why(old: str, new: str, reason: str) -> None:
    _, after, ctx = rewrite(RaiseMessagePassing(), SCATTER.replace(old, new))
    assert "scatter" not in body(after)
    assert [r.instr for r in ctx.remarks] == ["y"]
    assert reason in ctx.remarks[0].text


def test_a_column_index_per_channel_is_no_scatter_of_rows() -> None:
    text = """\
program columns(m: f32[E, 8], i: i64[E, 8], n: int[N])
  z: f32[N, 8] = aten.new_zeros.default(m, [n, 8])
  y: f32[N, 8] = aten.scatter_add.default(z, 0, i, m)
  return (y,)
"""
    before, after, ctx = rewrite(RaiseMessagePassing(), text)
    assert after is before
    assert "an index of its own" in ctx.remarks[0].text


def test_a_sum_that_starts_from_values_is_a_scatter_added_to_them() -> None:
    text = SCATTER.replace("aten.new_zeros.default(m, [n, 8])", "aten.relu.default(x)")
    before, after, _ = rewrite(RaiseMessagePassing(), text)
    assert body(after)[-2:] == ["scatter", "aten.add.Tensor"]
    src, dst = edges(5, 17)
    check_values(before, after, torch.randn(5, 8), src, dst)
    check_second_run(RaiseMessagePassing(), after)


@pytest.mark.parametrize(
    "zeros", ["aten.zeros_like.default(x)", "aten.full_like.default(x, 0)"], ids=["zeros", "full"]
)
def test_zeros_like_a_feature_have_as_many_rows(zeros: str) -> None:
    text = SCATTER.replace("aten.new_zeros.default(m, [n, 8])", zeros)
    before, after, _ = rewrite(RaiseMessagePassing(), text)
    assert "scatter" in body(after)
    assert next(after.find("scatter")).args["num_rows"].arg.op == "input"
    src, dst = edges(5, 17)
    check_values(before, after, torch.randn(5, 8), src, dst)


MEAN = """\
program mean(m: f32[E, 8], dst: i64[E], n: int[N])
  e: int[E] = aten.sym_size.int(dst, 0)
  o: f32[E] = aten.new_ones.default(m, [e])
  a: f32[N] = aten.new_zeros.default(m, [n])
  c: f32[N] = aten.scatter_add.default(a, 0, dst, o)
  k: f32[N] = aten.clamp.default(c, 1)
  z: f32[N, 8] = aten.new_zeros.default(m, [n, 8])
  y: f32[N, 8] = aten.index_add.default(z, 0, dst, m)
  v: f32[N, 1] = aten.view.default(k, [-1, 1])
  w: f32[N, 8] = aten.expand.default(v, [n, 8])
  r: f32[N, 8] = aten.div.Tensor(y, w)
  return (r,)
"""


def test_a_sum_over_a_clamped_count_is_a_mean() -> None:
    before, after, _ = rewrite(RaiseMessagePassing(), MEAN)
    assert body(after) == ["scatter"]
    assert next(after.find("scatter")).args["reduce"] == "mean"
    _, dst = edges(5, 17)
    check_values(before, after, torch.randn(17, 8), dst, 5)


def test_a_count_clamped_elsewhere_is_no_mean() -> None:
    text = MEAN.replace("clamp.default(c, 1)", "clamp.default(c, 2)")
    _, after, _ = rewrite(RaiseMessagePassing(), text)
    assert "aten.div.Tensor" in body(after)


SOFTMAX = """\
program softmax(l: f32[E, 4], dst: i64[E], n: int[N])
  e: int[E] = aten.sym_size.int(dst, 0)
  v: i64[E, 1] = aten.view.default(dst, [-1, 1])
  i: i64[E, 4] = aten.expand.default(v, [e, 4])
  z: f32[N, 4] = aten.new_zeros.default(l, [n, 4])
  h: f32[N, 4] = aten.scatter_reduce.two(z, 0, i, l, 'amax', include_self=False)
  g: f32[E, 4] = aten.index_select.default(h, 0, dst)
  s: f32[E, 4] = aten.sub.Tensor(l, g)
  x: f32[E, 4] = aten.exp.default(s)
  t: f32[N, 4] = aten.index_add.default(z, 0, dst, x)
  p: f32[N, 4] = aten.add.Tensor(t, 1e-16)
  q: f32[E, 4] = aten.index_select.default(p, 0, dst)
  w: f32[E, 4] = aten.div.Tensor(x, q)
  return (w,)
"""


def test_the_softmax_composite_is_one_op() -> None:
    before, after, _ = rewrite(RaiseMessagePassing(), SOFTMAX)
    assert body(after) == ["edge_softmax"]
    _, dst = edges(5, 17)
    check_values(before, after, torch.randn(17, 4), dst, 5)


@pytest.mark.parametrize(
    ("old", "new"),
    [("1e-16", "1e-3"), ("'amax'", "'amin'"), ("aten.sub.Tensor", "aten.add.Tensor")],
)
def test_what_is_almost_a_softmax_stays(old: str, new: str) -> None:
    _, after, _ = rewrite(RaiseMessagePassing(), SOFTMAX.replace(old, new))
    assert "edge_softmax" not in body(after)


OTHER_SOFTMAX = {
    "epsilon-after-gather": [
        ("  p: f32[N, 4] = aten.add.Tensor(t, 1e-16)\n", ""),
        (
            "  q: f32[E, 4] = aten.index_select.default(p, 0, dst)\n",
            "  p: f32[E, 4] = aten.index_select.default(t, 0, dst)\n"
            "  q: f32[E, 4] = aten.add.Tensor(p, 1e-12)\n",
        ),
    ],
    "low-start": [
        (
            "h: f32[N, 4] = aten.scatter_reduce.two(z, 0, i, l, 'amax', include_self=False)",
            "o: f32[N, 4] = aten.new_full.default(l, [n, 4], -1e9)\n"
            "  h: f32[N, 4] = aten.scatter_reduce.two(o, 0, i, l, 'amax')",
        ),
    ],
    "unshifted": [("aten.exp.default(s)", "aten.exp.default(l)"), ("(t, 1e-16)", "(t, 0.0)")],
    "shifted-by-least": [("'amax'", "'amin'"), ("(t, 1e-16)", "(t, 0.0)")],
}


@pytest.mark.parametrize("edits", OTHER_SOFTMAX.values(), ids=OTHER_SOFTMAX)
def test_other_spellings_of_softmax(edits: list[tuple[str, str]]) -> None:
    text = SOFTMAX
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    before, after, _ = rewrite(RaiseMessagePassing(), text)
    assert body(after) == ["edge_softmax"]
    _, dst = edges(5, 17)
    check_values(before, after, torch.randn(17, 4), dst, 5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aten.exp.default(s)", "aten.exp.default(l)"),
        ("two(z, 0, i, l, 'amax', include_self=False)", "two(z, 0, i, l, 'amax')"),
    ],
    ids=["unshifted", "start-of-0"],
)
def test_an_epsilon_counts_where_sums_may_be_small(old: str, new: str) -> None:
    assert old in SOFTMAX
    _, after, _ = rewrite(RaiseMessagePassing(), SOFTMAX.replace(old, new))
    assert "edge_softmax" not in body(after)
