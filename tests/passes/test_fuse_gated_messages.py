"""fuse-gated-messages: which messages are gated in place, which stay, and that values stay."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg

import gnnfx
from gnnfx.passes.fuse_gated_messages import FuseGatedMessages
from gnnfx.policy import Policy, Quantize
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

GATED = """\
program gated(x: f32[N, 8], e: f32[E, 3], src: i64[E], dst: i64[E])
  w: f32[6, 8] = param('w')
  u: f32[6, 8] = param('u')
  v: f32[6, 3] = param('v')
  b: f32[6] = param('b')
  n: int[N] = aten.sym_size.int(x, 0)
  p: f32[N, 6] = aten.linear.default(x, w, b)
  q: f32[N, 6] = aten.linear.default(x, u)
  c: f32[E, 6] = aten.linear.default(e, v)
  i: f32[E, 6] = gather(p, dst)
  j: f32[E, 6] = gather(q, src)
  k: f32[E, 6] = gather(p, src)
  s: f32[E, 6] = aten.add.Tensor(i, j)
  g: f32[E, 6] = aten.add.Tensor(s, c)
  h: f32[E, 6] = aten.sigmoid.default(g)
  m: f32[E, 6] = aten.mul.Tensor(h, k)
  y: f32[N, 6] = scatter(m, dst, n, 'sum')
  return (y,)
"""
SOFTPLUS = GATED.replace(
    "  m: f32[E, 6] = aten.mul.Tensor(h, k)",
    "  o: f32[E, 6] = aten.softplus.default(k)\n  m: f32[E, 6] = aten.mul.Tensor(o, h)",
)


def _values() -> list[torch.Tensor]:
    return [torch.randn(9, 8), torch.randn(30, 3), *edges(7, 30)]  # two nodes without edges


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
@pytest.mark.parametrize(("text", "activation"), [(GATED, "glu"), (SOFTPLUS, "softplus_glu")])
def test_gated_messages_are_made_where_they_are_reduced(
    text: str, activation: str, reduce: str
) -> None:
    before, after, _ = rewrite(FuseGatedMessages(), text.replace("'sum'", f"'{reduce}'"))
    (fused,) = after.find("aggregate_messages")
    assert fused.args["message_activation"] == activation
    assert fused.args["x"].shape[1] == 12
    assert fused.args["edge"] == after.inputs[1]  # its layer is part of the op
    assert "gather" not in body(after)
    check_values(before, after, *_values())
    check_second_run(FuseGatedMessages(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return (y,)", "return (y, m)", id="messages-are-returned"),
        pytest.param("gather(q, src)", "gather(x6, src)", id="not-a-layer"),
        pytest.param("aten.sigmoid.default(g)", "aten.tanh.default(g)", id="other-gate"),
        pytest.param("gather(p, src)", "gather(p, t)", id="two-sources"),
        pytest.param("aten.linear.default(x, u)", "aten.linear.default(x6, w6)", id="other-rows"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    text = GATED.replace("dst: i64[E])", "dst: i64[E], t: i64[E], x6: f32[N, 6])")
    text = text.replace("  n: int", "  w6: f32[6, 6] = param('w6')\n  n: int")
    before, after, _ = rewrite(FuseGatedMessages(), text.replace(old, new))
    assert after is before


def test_softplus_of_another_slope_stays() -> None:
    before, after, _ = rewrite(FuseGatedMessages(), SOFTPLUS.replace("(k)", "(k, 2)"))
    assert after is before


def test_layers_that_the_policy_tells_apart_stay() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(50, 16), torch.stack(edges(50, 400)), torch.randn(400, 4))
    policy = Policy(Quantize(), skip=("lin_f",))
    module = gnnfx.optimize(pyg.CGConv(16, 4), policy, inputs, calibration=[inputs])
    assert "aggregate_messages" not in module.ir()
    whole = Policy(Quantize(), skip=("lin_*",))
    module = gnnfx.optimize(pyg.CGConv(16, 4), whole, inputs, calibration=[inputs])
    assert "aggregate_messages" in module.ir()


@pytest.mark.parametrize("policy", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["cg", "res-gated", "res-gated-with-edges"])
def test_no_layer_of_pyg_leaves_messages_on_edges(name: str, policy: str) -> None:
    torch.manual_seed(0)
    layer = {
        "cg": lambda: pyg.CGConv(16, 4),
        "res-gated": lambda: pyg.ResGatedGraphConv(16, 12),
        "res-gated-with-edges": lambda: pyg.ResGatedGraphConv(16, 12, edge_dim=4),
    }[name]().eval()
    attr = () if name == "res-gated" else (torch.randn(400, 4),)
    inputs = (torch.randn(50, 16), torch.stack(edges(50, 400)), *attr)
    module = gnnfx.optimize(layer, policy, inputs, calibration=[inputs])
    assert "aggregate_messages" in module.ir()
    assert "f32[E, 12]" not in module.ir()
    assert "f32[E, 16]" not in module.ir()
    with torch.no_grad():
        want, got = layer(*inputs), module(*inputs)
    assert float((got - want).abs().max() / want.abs().max()) < (0.02 if policy == "int8" else 1e-5)
