"""split-linear: which slices become layers of their own, and that values stay."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.split_linear import SplitLinear
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

HEADS = """\
program heads(x: f32[N, 6])
  w: f32[12, 6] = param('all.weight')
  b: f32[12] = param('all.bias')
  v: f32[5, 4] = param('next.weight')
  h: f32[N, 12] = aten.linear.default(x, w, b)  # all
  k: f32[N, 4] = aten.slice.Tensor(h, 1, 0, 4)
  q: f32[N, 8] = aten.slice.Tensor(h, 1, -8, 12)
  y: f32[N, 5] = aten.linear.default(k, v)  # next
  return (y, q)
"""


@pytest.mark.parametrize("first", ["(x, w, b)", "(x, w)"])
def test_slices_are_layers(first: str) -> None:
    before, after, _ = rewrite(SplitLinear(), HEADS.replace("(x, w, b)", first))
    assert body(after) == ["aten.linear.default"] * 3
    check_values(before, after, torch.randn(7, 6))
    check_second_run(SplitLinear(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return (y, q)", "return (y, q, h)", id="read-as-a-whole"),
        pytest.param("default(k, v)", "default(r, v)", id="no-layer-reads-a-slice"),
        pytest.param("(h, 1, 0, 4)", "(h, 1, 0, 8, 2)", id="every-other-channel"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    text = HEADS.replace("  y: f32", "  r: f32[N, 4] = aten.relu.default(k)\n  y: f32")
    before, after, _ = rewrite(SplitLinear(), text.replace(old, new))
    assert after is before


def test_rows_are_no_channels() -> None:
    text = HEADS.replace("(h, 1, 0, 4)", "(f, 0, 0, 5)").replace("k: f32[N, 4]", "k: f32[5, 4]")
    text = text.replace("  k:", "  f: f32[N, 4] = aten.slice.Tensor(h, 1, 0, 4)\n  k:")
    text = text.replace("y: f32[N, 5]", "y: f32[5, 5]")
    before, after, _ = rewrite(SplitLinear(), text)
    assert after is before
