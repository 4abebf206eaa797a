"""fuse-messages and fuse-edge-mlp: which messages are made in place, and that values stay."""

from __future__ import annotations

import pytest
import torch

from gnnfx.passes.fuse_aggregate import FuseAggregate
from gnnfx.passes.fuse_edge_mlp import FuseEdgeMlp
from gnnfx.passes.fuse_messages import FuseMessages
from tests.passes.rewriting import body, check_second_run, check_values, dump, edges, rewrite

GINE = """\
program gine(x: f32[N, 8], e: f32[E, 3], src: i64[E], dst: i64[E])
  w: f32[8, 3] = param('w')
  b: f32[8] = param('b')
  n: int[N] = aten.sym_size.int(x, 0)
  j: f32[E, 8] = gather(x, src)
  c: f32[E, 8] = aten.linear.default(e, w, b)
  s: f32[E, 8] = aten.add.Tensor(j, c)
  m: f32[E, 8] = aten.relu.default(s)
  y: f32[N, 8] = scatter(m, dst, n, 'sum')  # aggr
  return (y,)
"""
FUSED = """\
program gine(x: f32[N, 8], e: f32[E, 3], src: i64[E], dst: i64[E])
  w: f32[8, 3] = param('w')
  b: f32[8] = param('b')
  n: int[N] = aten.sym_size.int(x, 0)
  compress_default: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)  # aggr
  getitem: i32[N + 1] = getitem(compress_default, 0)  # aggr
  getitem_1: i32[E] = getitem(compress_default, 1)  # aggr
  getitem_2: i32[E] = getitem(compress_default, 2)  # aggr
  aggregate_messages_default: f32[N, 8] = aggregate_messages(x, getitem, getitem_1, getitem_2, None, e, w, b, 'relu', 0.0, 'sum')  # aggr
  return (aggregate_messages_default,)
"""  # noqa: E501
EDGE_CONV = """\
program edge_conv(p: f32[N, 8], q: f32[N, 8], src: i64[E], dst: i64[E])
  w: f32[4, 8] = param('w')
  b: f32[4] = param('b')
  n: int[N] = aten.sym_size.int(p, 0)
  i: f32[E, 8] = gather(p, dst)
  j: f32[E, 8] = gather(q, src)
  s: f32[E, 8] = aten.add.Tensor(i, j)
  h: f32[E, 8] = aten.relu.default(s)
  m: f32[E, 4] = aten.linear.default(h, w, b)
  y: f32[N, 4] = scatter(m, dst, n, 'max')
  return (y,)
"""


def _values() -> list[torch.Tensor]:
    return [torch.randn(9, 8), torch.randn(30, 3), *edges(7, 30)]  # two nodes without edges


def test_messages_are_made_where_they_are_summed() -> None:
    before, after, _ = rewrite(FuseMessages(), GINE)
    assert dump(after) == FUSED
    check_values(before, after, *_values())
    check_second_run(FuseMessages(), after)


@pytest.mark.parametrize("reduce", ["mean", "min", "max"])
@pytest.mark.parametrize(
    "activation", ["silu.default(s", "sigmoid.default(s", "leaky_relu.default(s, 0.3"]
)
def test_reductions_and_activations(reduce: str, activation: str) -> None:
    text = GINE.replace("'sum'", f"'{reduce}'").replace("relu.default(s", activation)
    before, after, _ = rewrite(FuseMessages(), text)
    assert "aggregate_messages" in body(after)
    check_values(before, after, *_values())


def test_a_number_is_added_to_messages_in_place() -> None:
    text = GINE.replace("  y: f32", "  o: f32[E, 8] = aten.add.Tensor(m, 1e-07)\n  y: f32")
    before, after, _ = rewrite(FuseMessages(), text.replace("scatter(m", "scatter(o"))
    (fused,) = after.find("aggregate_messages")
    assert fused.args["offset"] == 1e-7
    check_values(before, after, *_values())


def test_wide_features_of_edges_are_multiplied_before() -> None:
    before, after, _ = rewrite(
        FuseMessages(), GINE.replace("[8, 3]", "[8, 9]").replace("E, 3", "E, 9")
    )
    assert "aten.linear.default" in body(after)
    x, _, src, dst = _values()
    check_values(before, after, x, torch.randn(30, 9), src, dst)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return (y,)", "return (y, m)", id="messages-are-returned"),
        pytest.param("aten.relu.default(s)", "aten.exp.default(s)", id="unknown-activation"),
        pytest.param("gather(x, src)", "aten.linear.default(e, w)", id="nothing-gathered"),
        pytest.param("'sum'", "'mul'", id="product"),
    ],
)
def test_leaves_alone(old: str, new: str) -> None:
    before, after, _ = rewrite(FuseMessages(), GINE.replace(old, new))
    assert after is before


def _edge_mlp(text: str) -> list[str]:
    """Ops after lowering scatters and fusing, having checked values and a second run."""
    _, lowered, _ = rewrite(FuseAggregate(), text)
    before, after, _ = rewrite(FuseEdgeMlp(), dump(lowered))
    check_values(before, after, torch.randn(9, 8), torch.randn(9, 8), *edges(7, 30))
    check_second_run(FuseEdgeMlp(), after)
    return body(after)


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_a_layer_on_messages_runs_in_tiles(reduce: str) -> None:
    ops = _edge_mlp(EDGE_CONV.replace("'max'", f"'{reduce}'"))
    assert ops[-1] == "aggregate_edge_mlp"
    assert "gather" not in ops


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return (y,)", "return (y, m)", id="messages-are-returned"),
        pytest.param("return (y,)", "return (y, h)", id="hidden-values-are-returned"),
        pytest.param("aten.relu.default(s)", "aten.exp.default(s)", id="unknown-activation"),
    ],
)
def test_a_layer_whose_operands_are_needed_stays(old: str, new: str) -> None:
    assert "aggregate_edge_mlp" not in _edge_mlp(EDGE_CONV.replace(old, new))
