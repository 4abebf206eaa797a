"""fuse-edge-network: no matrix of an edge is made, and values stay."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg

import gnnfx
from gnnfx.ir.text import parse
from gnnfx.pass_manager import PassContext
from gnnfx.passes.fuse_edge_network import FuseEdgeNetwork
from gnnfx.policy import Bits, Policy, Quantize
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

NN_CONV = """\
program nn(x: f32[N, 3], h: f32[E, 5], src: i64[E], dst: i64[E])
  w: f32[12, 5] = param('w')
  b: f32[12] = param('b')
  n: int[N] = aten.sym_size.int(x, 0)
  j: f32[E, 3] = gather(x, src)
  t: f32[E, 12] = aten.linear.default(h, w, b)
  v: f32[E, 3, 4] = aten.view.default(t, [-1, 3, 4])
  u: f32[E, 1, 3] = aten.unsqueeze.default(j, 1)
  p: f32[E, 1, 4] = aten.matmul.default(u, v)
  m: f32[E, 4] = aten.squeeze.dim(p, 1)
  y: f32[N, 4] = scatter(m, dst, n, 'sum')
  return (y,)
"""


def _values() -> list[torch.Tensor]:
    return [torch.randn(9, 3), torch.randn(30, 5), *edges(7, 30)]  # two nodes without edges


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("layer", ["default(h, w, b)", "default(h, w)"])
def test_nodes_are_multiplied(reduce: str, layer: str) -> None:
    text = NN_CONV.replace("'sum'", f"'{reduce}'").replace("default(h, w, b)", layer)
    before, after, _ = rewrite(FuseEdgeNetwork(), text)
    assert "aggregate_edge_network" in body(after)
    assert "aten.matmul.default" not in body(after)
    check_values(before, after, *_values())
    check_second_run(FuseEdgeNetwork(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("'sum'", "'max'", id="a-maximum-of-products-is-no-product"),
        pytest.param("return (y,)", "return (y, m)", id="messages-are-returned"),
        pytest.param("return (y,)", "return (y, t)", id="matrices-are-returned"),
        pytest.param("gather(x, src)", "aten.index_select.default(x, 0, src)", id="no-gather"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    before, after, _ = rewrite(FuseEdgeNetwork(), NN_CONV.replace(old, new))
    assert after is before


def test_few_edges_are_multiplied_themselves() -> None:
    program, ctx = parse(NN_CONV), PassContext(Policy())
    ctx.example = (torch.randn(90, 3), torch.randn(30, 5), *edges(7, 30))
    assert FuseEdgeNetwork().run(program, ctx) is program
    assert "nodes are more than edges" in str(ctx.remarks)


def test_a_layer_that_the_policy_names_stays() -> None:
    torch.manual_seed(0)
    layer = pyg.NNConv(8, 12, torch.nn.Linear(4, 96)).eval()
    inputs = (torch.randn(50, 8), torch.stack(edges(50, 400)), torch.randn(400, 4))
    policy = Policy(Quantize(overrides={"nn": Bits(weight=4)}))
    module = gnnfx.optimize(layer, policy, inputs, calibration=[inputs])
    assert "aggregate_edge_network" not in module.ir()


@pytest.mark.parametrize("aggr", ["add", "mean", "max"])
def test_nn_conv(aggr: str) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.ReLU(), torch.nn.Linear(7, 96))
    layer = pyg.NNConv(8, 12, network, aggr=aggr).eval()
    inputs = (torch.randn(50, 8), torch.stack(edges(50, 400)), torch.randn(400, 4))
    module = gnnfx.optimize(layer, "fp32", inputs)
    assert ("aggregate_edge_network" in module.ir()) == (aggr != "max")
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs), layer(*inputs), rtol=1e-4, atol=1e-4)
