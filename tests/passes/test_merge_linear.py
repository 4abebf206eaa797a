"""merge-linear: which layers become one, and that values stay."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.merge_linear import MergeLinear
from gnnfx.policy import Bits, Policy, Quantize
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

LAYERS = """\
program layers(x: f32[E, 3])
  w: f32[8, 3] = param('first.weight')
  b: f32[8] = param('first.bias')
  v: f32[4, 8] = param('second.weight')
  c: f32[4] = param('second.bias')
  h: f32[E, 8] = aten.linear.default(x, w, b)  # first
  y: f32[E, 4] = aten.linear.default(h, v, c)  # second
  return (y,)
"""


@pytest.mark.parametrize("first", ["(x, w, b)", "(x, w)"])
@pytest.mark.parametrize("second", ["(h, v, c)", "(h, v)"])
def test_two_layers_become_one(first: str, second: str) -> None:
    text = LAYERS.replace("(x, w, b)", first).replace("(h, v, c)", second)
    before, after, _ = rewrite(MergeLinear(), text)
    assert body(after) == ["aten.linear.default"]
    check_values(before, after, torch.randn(7, 3))
    check_second_run(MergeLinear(), after)


def test_a_wider_input_is_multiplied_once_if_nothing_else_reads_the_first_layer() -> None:
    text = LAYERS.replace("[8, 3]", "[8, 9]").replace("[E, 3]", "[E, 9]")
    before, after, _ = rewrite(MergeLinear(), text)
    assert body(after) == ["aten.linear.default"]
    check_values(before, after, torch.randn(7, 9))


def test_a_layer_that_others_read_stays_for_them() -> None:
    before, after, _ = rewrite(MergeLinear(), LAYERS.replace("return (y,)", "return (y, h)"))
    second = after.find("aten.linear.default")
    assert all(layer.arg == after.inputs[0] for layer in second)
    check_values(before, after, torch.randn(7, 3))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("(h, v, c)", "(r, v, c)", id="something-between"),
        pytest.param("[8, 3] = p", "[8, 9] = p", id="wider-and-read-by-others"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    text = LAYERS.replace("  y: f32", "  r: f32[E, 8] = aten.relu.default(h)\n  y: f32")
    text = text.replace(old, new).replace("x: f32[E, 3]", f"x: f32[E, {9 if '9' in new else 3}]")
    before, after, _ = rewrite(MergeLinear(), text)
    assert after is before


@pytest.mark.parametrize(
    "policy",
    [Policy(skip=("first",)), Policy(Quantize(overrides={"sec*": Bits(weight=4)}))],
    ids=["skip", "overrides"],
)
def test_layers_that_the_policy_tells_apart_stay(policy: Policy) -> None:
    before, after, ctx = rewrite(MergeLinear(), LAYERS, policy)
    assert after is before
    assert "the policy tells first from it" in ctx.reasons()


def test_layers_that_the_policy_names_alike_become_one() -> None:
    _, after, _ = rewrite(MergeLinear(), LAYERS, Policy(skip=("*",)))
    assert body(after) == ["aten.linear.default"]


def test_a_narrow_waist_stays() -> None:
    text = LAYERS.replace("[8, 3]", "[8, 90]").replace("[E, 3]", "[E, 90]")
    text = text.replace("[4, 8]", "[40, 8]").replace("f32[4]", "f32[40]").replace("E, 4]", "E, 40]")
    before, after, _ = rewrite(MergeLinear(), text)
    assert after is before
