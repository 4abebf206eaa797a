"""canonicalize, eliminate-common-subexpressions and fold-constants."""

from __future__ import annotations

import torch

from gnnfx.passes.canonicalize import Canonicalize
from gnnfx.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from gnnfx.passes.fold_constants import FoldConstants
from tests.passes.rewriting import body, check_second_run, check_values, dump, rewrite

COPIES = """\
program copies(x: f32[N, 8], w: f32[E])
  b: f32[8] = param('b')
  c: f32[N, 8] = aten.clone.default(x)
  v: f32[N, 8] = aten.view.default(c, [-1, 8])
  e: int[E] = aten.sym_size.int(w, 0)
  o: f32[E] = aten.ones.default([e])
  m: f32[E] = aten.mul.Tensor(w, o)
  y: f32[N, 8] = aten.add.Tensor(v, b)
  return (y, m)
"""


def test_copies_and_neutral_factors_go() -> None:
    before, after, _ = rewrite(Canonicalize(), COPIES)
    assert body(after) == ["aten.add.Tensor"]
    check_values(before, after, torch.randn(4, 8), torch.rand(3))
    check_second_run(Canonicalize(), after)


def test_a_view_of_a_view_that_shows_the_whole_goes() -> None:
    text = """\
program views(x: f32[N, 8])
  n: int[N] = aten.sym_size.int(x, 0)
  h: f32[N, 2, 4] = aten.view.default(x, [n, 2, 4])
  v: f32[N, 8] = aten.view.default(h, [n, 8])
  y: f32[N, 8] = aten.relu.default(v)
  return (y, h)
"""
    before, after, _ = rewrite(Canonicalize(), text)
    assert next(iter(after.find("aten.relu.default"))).arg == after.inputs[0]
    assert body(after).count("aten.view.default") == 1
    check_values(before, after, torch.randn(3, 8))
    check_second_run(Canonicalize(), after)


def test_a_factor_of_one_that_widens_stays() -> None:
    text = """\
program widen(w: f32[E, 1], n: int[N])
  e: int[E] = aten.sym_size.int(w, 0)
  o: f32[E, 8] = aten.ones.default([e, 8])
  m: f32[E, 8] = aten.mul.Tensor(w, o)
  return (m,)
"""
    before, after, _ = rewrite(Canonicalize(), text)
    assert after is before


def test_equal_instructions_become_one() -> None:
    text = """\
program twice(i: i64[2, E], x: f32[N, 8])
  a: i64[E] = aten.select.int(i, 0, 1)
  b: i64[E] = aten.select.int(i, 0, 1)
  c: i64[E] = aten.select.int(i, 0, 0)
  m: f32[E, 8] = gather(x, a)
  k: f32[E, 8] = gather(x, b)
  s: f32[E, 8] = aten.add.Tensor(m, k)
  d: f32[E, 8] = gather(x, c)
  return (s, d)
"""
    before, after, _ = rewrite(EliminateCommonSubexpressions(), text)
    assert body(after).count("gather") == 2
    check_values(before, after, torch.tensor([[0, 1], [1, 1]]), torch.randn(3, 8))
    check_second_run(EliminateCommonSubexpressions(), after)


def test_random_draws_and_unlike_numbers_are_not_equal() -> None:
    text = """\
program unlike(x: f32[N, 8])
  a: f32[N, 8] = aten.bernoulli.default(x)
  b: f32[N, 8] = aten.bernoulli.default(x)
  c: f32[N, 8] = aten.add.Tensor(x, 1)
  d: f32[N, 8] = aten.add.Tensor(x, 1.0)
  return (a, b, c, d)
"""
    before, after, _ = rewrite(EliminateCommonSubexpressions(), text)
    assert after is before


def test_parameter_expressions_are_computed_once() -> None:
    text = """\
program eps(x: f32[N, 8])
  e: f32[1] = param('conv.eps')
  f: f32[1] = aten.add.Tensor(e, 1)
  g: f32[] = aten.view.default(f, [])
  y: f32[N, 8] = aten.mul.Tensor(x, g)
  return (y,)
"""
    before, after, _ = rewrite(FoldConstants(), text)
    assert body(after) == ["aten.mul.Tensor"]
    assert "param('conv.eps.add.view')" in dump(after)
    check_values(before, after, torch.randn(4, 8))
    check_second_run(FoldConstants(), after)


def test_a_number_on_the_left_is_no_instruction() -> None:
    text = """\
program scaled(x: f32[N, 8])
  y: f32[N, 8] = aten.mul.Tensor(20.0, x)
  return (y,)
"""
    before, after, _ = rewrite(Canonicalize(), text)
    assert after is before
