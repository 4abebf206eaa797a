"""What passes do differently for programs that train: dropout, detach, norms, attention, codes."""

from __future__ import annotations

import torch

from gnnfx.ir.text import parse
from gnnfx.pass_manager import PassContext
from gnnfx.passes.canonicalize import Canonicalize
from gnnfx.passes.choose_qparams import ChooseQparams
from gnnfx.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from gnnfx.passes.fold_batch_norm import FoldBatchNorm
from gnnfx.passes.fold_quantization import FoldQuantization
from gnnfx.passes.insert_observers import InsertObservers
from gnnfx.policy import PRESETS, Policy, Quantize
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

DROPPED = """\
program layer(x: f32[N, 16])
  w: f32[8, 16] = param('lin.weight')
  d: f32[N, 16] = dropout(x, 0.5)
  s: f32[N, 16] = aten.detach.default(d)
  y: f32[N, 8] = aten.linear.default(s, w)
  return (y,)
"""
NORMED = """\
program layer(x: f32[N, 16])
  w: f32[8, 16] = param('lin.weight')
  mean: f32[8] = param('norm.running_mean')
  var: f32[8] = param('norm.running_var')
  h: f32[N, 8] = aten.linear.default(x, w)
  t: (f32[N, 8], f32[0], f32[0]) = aten._native_batch_norm_legit_no_training.default(h, None, None, mean, var, 0.1, 1e-05)
  y: f32[N, 8] = getitem(t, 0)
  return (y,)
"""  # noqa: E501
ATTENTION = """\
program gat(h: f32[N, 8], a_src: f32[N, 2], a_dst: f32[N, 2], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(h, 0)
  c: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  p: i32[N + 1] = getitem(c, 0)
  q: i32[E] = getitem(c, 1)
  r: i32[E] = getitem(c, 2)
  i: i64[E] = gather(dst, r)
  x: f32[N, 2, 4] = aten.view.default(h, [-1, 2, 4])
  s: f32[E, 2] = gather(a_src, q)
  t: f32[E, 2] = gather(a_dst, i)
  l: f32[E, 2] = aten.add.Tensor(s, t)
  k: f32[E, 2] = aten.leaky_relu.default(l, 0.2)
  w: f32[E, 2] = segment_softmax(k, p)
  d: f32[E, 2] = dropout(w, 0.5)
  y: f32[N, 2, 4] = aggregate(x, p, q, d)
  return (y,)
"""
FUSED = """\
program gat(h: f32[N, 8], a_src: f32[N, 2], a_dst: f32[N, 2], p: i32[N + 1], q: i32[E])
  x: f32[N, 2, 4] = aten.view.default(h, [-1, 2, 4])
  y: f32[N, 2, 4] = attend_gat(x, a_src, a_dst, p, q)
  return (y,)
"""
ALL = Policy(Quantize(layers="all"))


def test_training_keeps_dropout_and_detach_and_eval_does_not() -> None:
    assert Canonicalize(training=True).run(program := parse(DROPPED), PassContext()) is program
    _, after, _ = rewrite(Canonicalize(), DROPPED)
    assert body(after) == ["aten.linear.default"]


def test_equal_dropouts_stay_two() -> None:
    text = DROPPED.replace("(s, w)", "(e, w)").replace(
        "  y: f32", "  e: f32[N, 16] = dropout(x, 0.5)\n  y: f32"
    )
    text = text.replace("return (y,)", "return (y, s)")
    check_second_run(EliminateCommonSubexpressions(), parse(text))


def test_observers_stand_in_front_of_dropout() -> None:
    text = DROPPED.replace("  s: f32[N, 16] = aten.detach.default(d)\n", "").replace(
        "(s, w)", "(d, w)"
    )
    _, after, _ = rewrite(InsertObservers(), text, ALL)
    assert body(after) == ["observe", "dropout", "aten.linear.default"]


def test_a_value_that_others_read_dropped_is_observed_behind_dropout() -> None:
    text = DROPPED.replace("(s, w)", "(d, w)").replace("return (y,)", "return (y, s)")
    _, after, _ = rewrite(InsertObservers(), text, ALL)
    (linear,) = after.find("aten.linear.default")
    assert linear.arg.op == "observe"
    assert linear.arg.arg.op == "dropout"


def test_trained_weights_keep_their_codes_beside_a_norm() -> None:
    before, after, ctx = rewrite(FoldBatchNorm(keep_weights=True), NORMED)
    assert body(after) == ["aten.linear.default", "aten.mul.Tensor", "aten.add.Tensor"]
    assert "lin.weight" in after.tensors
    assert "keep the codes" in ctx.remarks[0].text
    before.tensors["norm.running_var"].abs_()
    after = FoldBatchNorm(keep_weights=True).run(before, PassContext())
    check_values(before, after, torch.randn(5, 16))


def test_attention_in_parts_is_observed_as_the_fused_op_will_be() -> None:
    _, after, _ = rewrite(InsertObservers(), ATTENTION, ALL)
    (observe,) = after.find("observe")
    assert observe.args["name"] == "h"
    (aggregate,) = after.find("aggregate")
    assert aggregate.args["x"].arg == observe
    src, dst = edges(6, 30)
    scores = torch.randn(6, 2), torch.randn(6, 2)
    check_values(parse(ATTENTION), after, torch.randn(6, 8), *scores, src, dst)


def test_scores_of_other_rows_than_are_summed_stay_float() -> None:
    text = ATTENTION.replace("a_src: f32[N, 2]", "x: f32[N, 2, 4]").replace(
        "  x: f32[N, 2, 4] = aten.view.default(h, [-1, 2, 4])\n",
        "  att: f32[1, 2, 4] = param('att')\n"
        "  v: f32[N, 2, 4] = aten.view.default(h, [-1, 2, 4])\n"
        "  m: f32[N, 2, 4] = aten.mul.Tensor(v, att)\n"
        "  a_src: f32[N, 2] = aten.sum.dim_IntList(m, [-1])\n",
    )
    _, after, _ = rewrite(InsertObservers(), text, ALL)
    (observe,) = after.find("observe")
    assert observe.args["name"] == "x"


def test_packed_codes_are_unpacked_for_attention() -> None:
    ctx = PassContext(PRESETS["int4-dq"])
    simulated = ChooseQparams().run(InsertObservers().run(parse(FUSED), ctx), ctx)
    integer = FoldQuantization().run(simulated, ctx)
    ops = ["choose_qparams", "quantize", "unpack", "aten.view.default", "quantized_attend_gat"]
    assert [op for op in body(integer) if op != "getitem"] == ops
    src, dst = edges(6, 30)
    rowptr, by_dst, _ = torch.ops.gnnfx.compress(src, dst, 6)
    check_values(
        simulated, integer, torch.randn(6, 8), torch.randn(6, 2), torch.randn(6, 2), rowptr, by_dst
    )
