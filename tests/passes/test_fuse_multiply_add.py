"""fuse-multiply-add: which products become part of a sum, and that values stay."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.fuse_multiply_add import FuseMultiplyAdd
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

NORM = """\
program norm(x: f32[N, 6], r: f32[N, 6])
  s: f32[6] = param('norm.scale')
  c: f32[6] = param('norm.shift')
  t: f32[N, 6] = aten.mul.Tensor(x, s)  # norm
  y: f32[N, 6] = aten.add.Tensor(t, c)  # norm
  return y
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("", "", id="norm"),
        pytest.param("(t, c)", "(c, t)", id="product-behind"),
        pytest.param("(x, s)", "(x, x)", id="square"),
        pytest.param("(t, c)", "(t, r)", id="rows"),
    ],
)
def test_one_op(old: str, new: str) -> None:
    before, after, _ = rewrite(FuseMultiplyAdd(), NORM.replace(old, new) if old else NORM)
    assert body(after) == ["aten.addcmul.default"]
    check_values(before, after, torch.randn(7, 6), torch.randn(7, 6))
    check_second_run(FuseMultiplyAdd(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return y", "return (y, t)", id="product-is-a-result"),
        pytest.param("(t, c)", "(t, c, alpha=2)", id="scaled-term"),
        pytest.param("(t, c)", "(t, 1.5)", id="number-added"),
        pytest.param("(x, s)", "(x, 1.5)", id="number-multiplied"),
        pytest.param("(x, s)", "(s, s)", id="narrower-product"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    text = NORM.replace(old, new)
    if new == "(s, s)":
        text = text.replace("t: f32[N, 6]", "t: f32[6]").replace("(t, c)", "(x, t)")
    _, after, _ = rewrite(FuseMultiplyAdd(), text)
    assert "aten.addcmul.default" not in body(after)
