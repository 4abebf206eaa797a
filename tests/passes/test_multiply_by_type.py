"""multiply-by-type: which products are of nodes, that values stay, and what wrong types do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import gnnfx
from gnnfx.errors import InputError
from gnnfx.pass_manager import PassContext
from gnnfx.passes.multiply_by_type import MultiplyByType
from tests.passes.rewriting import check_second_run, check_values, edges, rewrite

PRODUCTS = """\
program products(x: f32[N, 8], src: i64[E], t: i64[E], u: f32[E, 8, 4])
  v: f32[3, 8, 4] = param('weight')
  j: f32[E, 8] = gather(x, src)
  r: f32[E, 1, 8] = aten.unsqueeze.default(j, 1)
  w: f32[E, 8, 4] = gather(v, t)
  m: f32[E, 1, 4] = aten.bmm.default(r, w)
  y: f32[E, 4] = aten.squeeze.dim(m, 1)
  return (y,)
"""


def _values(nodes: int = 9, count: int = 40) -> list[Tensor]:
    src, types = edges(nodes, count)
    return [torch.randn(nodes, 8), src, types % 3, torch.randn(count, 8, 4)]


def test_nodes_are_multiplied() -> None:
    before, after, _ = rewrite(MultiplyByType(), PRODUCTS)
    assert not any(after.find("aten.bmm.default"))
    check_values(before, after, *_values())
    check_second_run(MultiplyByType(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("bmm.default(r, w)", "bmm.default(r, u)", id="matrices-of-edges"),
        pytest.param("return (y,)", "return (y, m)", id="product-is-returned"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    before, after, _ = rewrite(MultiplyByType(), PRODUCTS.replace(old, new))
    assert after is before


def test_many_types_of_few_edges_stay() -> None:
    before, _, _ = rewrite(MultiplyByType(), PRODUCTS)
    ctx = PassContext(example=tuple(_values(nodes=900, count=30)))
    assert MultiplyByType().run(before, ctx) is before
    assert "takes longer" in ctx.reasons()


class _Scaled(nn.Module):
    """Two layers, so that the second has trained-looking inputs."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.first, self.second = make(8, 12), make(12, 8)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        hidden = self.first(x, edge_index, edge_type).relu()
        result: Tensor = self.second(hidden, edge_index, edge_type)
        return result


def _fast_rgcn(inputs: int, outputs: int) -> nn.Module:
    layer: nn.Module = pyg.FastRGCNConv(inputs, outputs, 3)
    return layer


def _rgat(inputs: int, outputs: int) -> nn.Module:
    layer: nn.Module = pyg.RGATConv(inputs, outputs // 2, 3, heads=2)
    return layer


@pytest.mark.parametrize(
    ("make", "op"), [(_fast_rgcn, "= aggregate("), (_rgat, "= attend_gat(")], ids=["rgcn", "rgat"]
)
def test_layers_of_relations(make: Any, op: str) -> None:
    torch.manual_seed(0)
    model = _Scaled(make).eval()
    src, dst = edges(50, 300)
    inputs = torch.randn(50, 8), torch.stack([src, dst]), torch.arange(300) % 3
    with torch.no_grad():
        expected = model(*inputs)
    fused = gnnfx.optimize(model, "fp32", inputs)
    assert fused.ir().count(op) == 2
    assert "bmm" not in fused.ir()
    torch.testing.assert_close(fused(*inputs), expected, rtol=1e-4, atol=1e-5)
    whole = gnnfx.optimize(model, "int8", inputs, calibration=[inputs])
    assert (whole(*inputs) - expected).abs().max() < 0.1 * expected.abs().max()
    with pytest.raises(InputError, match=r"edge_type.*holds node 3"):
        fused(inputs[0], inputs[1], inputs[2] + 1)
    with pytest.raises(InputError, match=r"edge_index.*holds node 50"):
        fused(inputs[0], inputs[1] + 1, inputs[2])
