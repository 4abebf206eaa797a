"""raise-linear: products with a weight become linear layers."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.raise_linear import RaiseLinear
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

PRODUCTS = """\
program products(x: f32[N, 8])
  w: f32[8, 4] = param('weight')
  b: f32[4] = param('bias')
  p: f32[N, 4] = aten.matmul.default(x, w)
  q: f32[N, 4] = aten.mm.default(x, w)
  r: f32[N, 4] = aten.addmm.default(b, x, w)
  return (p, q, r)
"""


def test_products_become_linear_layers_of_one_weight() -> None:
    before, after, _ = rewrite(RaiseLinear(), PRODUCTS)
    assert body(after) == ["aten.linear.default"] * 3
    assert sorted(after.tensors) == ["bias", "weight.transposed"]
    check_values(before, after, torch.randn(5, 8))
    check_second_run(RaiseLinear(), after)


@pytest.mark.parametrize(
    "product",
    [
        pytest.param("aten.addmm.default(b, x, w, beta=2)", id="scaled-bias"),
        pytest.param("aten.addmm.default(p, x, w)", id="bias-of-rows"),
    ],
)
def test_other_products_stay(product: str) -> None:
    text = PRODUCTS.replace("aten.addmm.default(b, x, w)", product)
    _, after, _ = rewrite(RaiseLinear(), text)
    assert body(after) == ["aten.linear.default"] * 2 + ["aten.addmm.default"]


def test_products_of_features_stay() -> None:
    text = PRODUCTS.replace(
        "w: f32[8, 4] = param('weight')", "w: f32[8, 4] = aten.view.default(x, [8, 4])"
    )
    before, after, _ = rewrite(
        RaiseLinear(), text.replace("x: f32[N, 8]", "x: f32[4, 8]").replace("[N, ", "[4, ")
    )
    assert after is before
