"""fuse-softmax-messages: which messages are weighed in place, and that values stay."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg

import gnnfx
from gnnfx.passes.fuse_softmax_messages import FuseSoftmaxMessages
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

SOFTMAX = """\
program gen(x: f32[N, 8], e: f32[E, 3], src: i64[E], dst: i64[E], s: f32[])
  w: f32[8, 3] = param('w')
  t: f32[1] = param('t')
  n: int[N] = aten.sym_size.int(x, 0)
  j: f32[E, 8] = gather(x, src)
  c: f32[E, 8] = aten.linear.default(e, w)
  a: f32[E, 8] = aten.add.Tensor(j, c)
  r: f32[E, 8] = aten.relu.default(a)
  m: f32[E, 8] = aten.add.Tensor(r, 1e-07)
  l: f32[E, 8] = aten.mul.Tensor(m, t)
  p: f32[E, 8] = edge_softmax(l, dst, n)
  q: f32[E, 8] = aten.mul.Tensor(m, p)
  y: f32[N, 8] = scatter(q, dst, n, 'sum')
  return (y,)
"""


def _values() -> list[torch.Tensor]:
    return [torch.randn(9, 8), torch.randn(30, 3), *edges(7, 30), torch.tensor(2.0)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("", "", id="learned"),
        pytest.param("f32[1] = param", "f32[1, 8] = param", id="one-a-channel"),
        pytest.param("Tensor(m, t)", "Tensor(m, 0.5)", id="number"),
        pytest.param("Tensor(m, t)", "Tensor(t, m)", id="other-order"),
        pytest.param("edge_softmax(l,", "edge_softmax(m,", id="none"),
        pytest.param("Tensor(m, p)", "Tensor(p, m)", id="weights-first"),
        pytest.param("add.Tensor(r, 1e-07)", "add.Tensor(r, 1, alpha=2)", id="other-offset"),
    ],
)
def test_messages_are_weighed_where_they_are_summed(old: str, new: str) -> None:
    before, after, _ = rewrite(FuseSoftmaxMessages(), SOFTMAX.replace(old, new))
    (fused,) = after.find("aggregate_messages")
    assert fused.args["reduce"] == "softmax"
    assert "edge_softmax" not in body(after)
    check_values(before, after, *_values())
    check_second_run(FuseSoftmaxMessages(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return (y,)", "return (y, q)", id="messages-are-returned"),
        pytest.param("return (y,)", "return (y, p)", id="weights-are-returned"),
        pytest.param("Tensor(m, t)", "Tensor(m, s)", id="computed-temperature"),
        pytest.param("Tensor(m, t)", "Tensor(c, t)", id="other-logits"),
        pytest.param("edge_softmax(l, dst", "edge_softmax(l, src", id="other-nodes"),
        pytest.param("'sum'", "'mean'", id="other-reduction"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    before, after, _ = rewrite(FuseSoftmaxMessages(), SOFTMAX.replace(old, new))
    assert after is before


def test_codes_are_those_of_features_and_not_of_shares() -> None:
    """A hub's messages have a small share each, which codes of all shares would round away."""
    torch.manual_seed(0)
    layer = pyg.GENConv(16, 16, aggr="softmax", learn_t=True).eval()
    hub = torch.stack([torch.arange(400), torch.zeros(400, dtype=torch.long)])
    inputs = (torch.randn(400, 16), torch.cat([torch.stack(edges(400, 400)), hub], 1))
    module = gnnfx.optimize(layer, "int8", inputs, calibration=[inputs])
    assert "edge_softmax" not in module.ir()
    with torch.no_grad():
        want, got = layer(*inputs), module(*inputs)
    assert float((got - want)[0].norm() / want[0].norm()) < 0.05
