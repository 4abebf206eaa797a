"""fold-batch-norm, fold-attention-scores, reassociate and separate-norm."""

from __future__ import annotations

import pytest
import torch

from gnnfx.ir.program import Program
from gnnfx.ir.text import parse
from gnnfx.ir.verify import verify
from gnnfx.kernels.epilogue import ACTIVATIONS
from gnnfx.pass_manager import PassContext
from gnnfx.passes.fold_attention_scores import FoldAttentionScores
from gnnfx.passes.fold_batch_norm import FoldBatchNorm
from gnnfx.passes.reassociate import Reassociate
from gnnfx.passes.separate_norm import SeparateNorm
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

NORM = """\
program norm(x: f32[N, 4], src: i64[E], dst: i64[E])
  w: f32[8, 4] = param('lin.weight')
  b: f32[8] = param('bias')
  g: f32[8] = param('norm.weight')
  s: f32[8] = param('norm.bias')
  u: f32[8] = param('norm.running_mean')
  v: f32[8] = param('norm.running_var')
  n: int[N] = aten.sym_size.int(x, 0)
  h: f32[N, 8] = aten.linear.default(x, w)
  m: f32[E, 8] = gather(h, src)
  a: f32[N, 8] = scatter(m, dst, n, 'sum')
  c: f32[N, 8] = aten.add.Tensor(a, b)
  t: (f32[N, 8], f32[0], f32[0]) = aten._native_batch_norm_legit_no_training.default(c, g, s, u, v, 0.1, 1e-05)
  y: f32[N, 8] = getitem(t, 0)
  return (y,)
"""  # noqa: E501


def _fold(text: str) -> tuple[Program, PassContext]:
    """The program after the pass, having checked values with a positive variance."""
    variance = {"norm.running_var": torch.linspace(0.5, 2.0, 8)}
    before, ctx = parse(text, variance), PassContext()
    after = FoldBatchNorm().run(before, ctx)
    verify(after, before)
    src, dst = edges(5, 17)
    check_values(before, after, torch.randn(5, 4), src, dst, rtol=1e-4)
    check_second_run(FoldBatchNorm(), after)
    return after, ctx


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(NORM, id="through-aggregate-and-bias"),
        pytest.param(
            NORM.replace("gather(h, src)", "gather(x, src)")
            .replace("f32[E, 8] = gather", "f32[E, 4] = gather")
            .replace("f32[N, 8] = scatter", "f32[N, 4] = scatter")
            .replace("  c: f32[N, 8] = aten.add.Tensor(a, b)\n", "")
            .replace("default(c, g", "default(h, g"),
            id="linear",
        ),
    ],
)
def test_batch_norm_reaches_the_linear_layer(text: str) -> None:
    after, ctx = _fold(text)
    assert not {"aten.mul.Tensor", "getitem"} & set(body(after))
    assert ctx.remarks[0].done


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("aten.add.Tensor(a, b)", "aten.tanh.default(a)", id="behind-a-nonlinearity"),
        pytest.param("return (y,)", "return (y, h)", id="layer-used-elsewhere"),
        pytest.param("'sum'", "'max'", id="maximum"),
        pytest.param(
            "  c: f32[N, 8] = aten.add.Tensor(a, b)\n",
            "  c: f32[N, 8] = aten.add.Tensor(a, 0)\n",
            id="no-bias-to-take-the-shift",
        ),
        pytest.param(
            "  c: f32[N, 8] = aten.add.Tensor(a, b)\n",
            "  i: f32[N, 8] = aten.add.Tensor(a, b)\n  c: f32[N, 8] = aten.mul.Tensor(i, 2.0)\n",
            id="scaled-behind-the-bias",
        ),
    ],
)
def test_batch_norm_out_of_reach_becomes_multiply_add(old: str, new: str) -> None:
    after, ctx = _fold(NORM.replace(old, new))
    assert body(after)[-2:] == ["aten.mul.Tensor", "aten.add.Tensor"]
    assert not ctx.remarks[0].done


def test_attention_scores_come_from_the_layer_input() -> None:
    text = """\
program scores(x: f32[N, 6])
  w: f32[8, 6] = param('lin.weight')
  b: f32[8] = param('lin.bias')
  t: f32[1, 2, 4] = param('att')
  h: f32[N, 8] = aten.linear.default(x, w, b)
  v: f32[N, 2, 4] = aten.view.default(h, [-1, 2, 4])
  m: f32[N, 2, 4] = aten.mul.Tensor(v, t)
  a: f32[N, 2] = aten.sum.dim_IntList(m, [-1])
  return (a,)
"""
    before, after, _ = rewrite(FoldAttentionScores(), text)
    assert body(after) == ["aten.linear.default"]
    check_values(before, after, torch.randn(5, 6), rtol=1e-4)


def test_where_weights_are_kept_only_scores_of_codes_become_a_layer() -> None:
    text = """\
program scores(x: f32[N, 8])
  t: f32[1, 2, 4] = param('att')
  h: f32[N, 8] = {h}
  v: f32[N, 2, 4] = aten.view.default(h, [-1, 2, 4])
  m: f32[N, 2, 4] = aten.mul.Tensor(v, t)
  a: f32[N, 2] = aten.sum.dim_IntList(m, [-1])
  return (a,)
"""
    kept = FoldAttentionScores(keep_weights=True)
    _, after, _ = rewrite(kept, text.format(h="aten.relu.default(x)"))
    assert "aten.linear.default" not in body(after)
    before, after, _ = rewrite(kept, text.format(h="observe(x, 'h')"))
    assert body(after) == ["observe", "aten.linear.default"]
    check_values(before, after, torch.randn(5, 8), rtol=1e-4)


AGGREGATE = """\
program order(x: f32[N, {k}], rowptr: i32[N + 1], src: i32[E], w: f32[E])
  p: f32[{o}, {k}] = param('lin.weight')
  b: f32[{o}] = param('bias')
  h: f32[N, {o}] = aten.linear.default(x, p)
  y: f32[N, {o}] = aggregate(h, rowptr, src, w, 'sum', None, None, b)
  return (y,)
"""


def _csr(nodes: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    src, dst = edges(nodes, count)
    rowptr, by_dst, _ = torch.ops.gnnfx.compress(src, dst, nodes)
    return rowptr, by_dst


def test_a_widening_layer_moves_behind_the_aggregate() -> None:
    before, after, _ = rewrite(Reassociate(), AGGREGATE.format(k=4, o=8))
    assert body(after) == ["aggregate", "aten.linear.default"]
    check_values(before, after, torch.randn(5, 4), *_csr(5, 17), torch.rand(17), rtol=1e-4)
    check_second_run(Reassociate(), after)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_finishes_the_rows_comes_after_the_layer(activation: str) -> None:
    text = AGGREGATE.format(k=4, o=8).replace("w: f32[E])", "w: f32[E], r: f32[N, 8])")
    text = text.replace("None, b)", f"None, b, r, '{activation}')")
    before, after, _ = rewrite(Reassociate(), text)
    assert body(after)[:2] == ["aggregate", "aten.linear.default"]
    inputs = torch.randn(5, 4), *_csr(5, 17), torch.rand(17), torch.randn(5, 8)
    check_values(before, after, *inputs, rtol=1e-4)


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_layer_that_does_not_widen_stays_in_front(outputs: int) -> None:
    before, after, _ = rewrite(Reassociate(), AGGREGATE.format(k=4, o=outputs))
    assert after is before


def test_a_narrowing_layer_moves_in_front() -> None:
    text = """\
program order(x: f32[N, 8], rowptr: i32[N + 1], src: i32[E], e: f32[])
  p: f32[4, 8] = param('lin.weight')
  b: f32[4] = param('lin.bias')
  a: f32[N, 8] = aggregate(x, rowptr, src, None, 'mean', None, e)
  y: f32[N, 4] = aten.linear.default(a, p, b)
  return (y,)
"""
    before, after, _ = rewrite(Reassociate(), text)
    assert body(after) == ["aten.linear.default", "aggregate"]
    inputs = (torch.randn(5, 8), *_csr(5, 17), torch.tensor(1.5))
    check_values(before, after, *inputs, rtol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param("default(x, p)", "default(x, p, b)", "adds a bias to each message", id="bias"),
        pytest.param("return (y,)", "return (y, h)", "h is also used by", id="escapes"),
    ],
)
def test_reassociate_says_why_not(old: str, new: str, reason: str) -> None:
    before, after, ctx = rewrite(Reassociate(), AGGREGATE.format(k=4, o=8).replace(old, new))
    assert after is before
    assert reason in ctx.remarks[0].text


SEPARABLE = """\
program separate(x: f32[N, 8], c: f32[N], v: f32[E], s: i64[E], d: i64[E])
  n: int[N] = aten.sym_size.int(x, 0)
  k: (i32[N + 1], i32[E], i32[E]) = compress(s, d, n)
  rowptr: i32[N + 1] = getitem(k, 0)
  src: i32[E] = getitem(k, 1)
  perm: i32[E] = getitem(k, 2)
  dst: i64[E] = gather(d, perm)
  a: f32[E] = gather(c, src)
  b: f32[E] = gather(c, dst)
  w: f32[E] = aten.mul.Tensor(a, b)
  y: f32[N, 8] = aggregate(x, rowptr, src, w)
  return (y,)
"""


@pytest.mark.parametrize("weighted", [False, True])
def test_node_factors_leave_the_edge_weight(weighted: bool) -> None:
    text = SEPARABLE
    if weighted:
        text = (
            text.replace("aten.mul.Tensor(a, b)\n", "aten.mul.Tensor(a, v)\n")
            .replace("  y: ", "  z: f32[E] = aten.mul.Tensor(w, b)\n  y: ")
            .replace("aggregate(x, rowptr, src, w)", "aggregate(x, rowptr, src, z)")
        )
    before, after, _ = rewrite(SeparateNorm(), text)
    aggregate = next(after.find("aggregate"))
    assert (aggregate.args["weight"] is not None) is weighted
    assert aggregate.args["row_scale"] is not None
    src, dst = edges(5, 17)
    check_values(before, after, torch.randn(5, 8), torch.rand(5), torch.rand(17), src, dst)
    check_second_run(SeparateNorm(), after)


def test_a_weighted_maximum_is_not_separated() -> None:
    text = SEPARABLE.replace("aggregate(x, rowptr, src, w)", "aggregate(x, rowptr, src, w, 'max')")
    before, after, ctx = rewrite(SeparateNorm(), text)
    assert after is before
    assert "maximum" in ctx.remarks[0].text
