"""fuse-linear-sum: layers that are added up, one op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import RGCNConv, SAGEConv

import gnnfx
from gnnfx.errors import VerifyError
from gnnfx.ir.text import dump, parse
from gnnfx.ir.verify import verify
from gnnfx.passes.fuse_linear_sum import FuseLinearSum
from tests.passes.rewriting import body, check_second_run, check_values, rewrite

SUM = """\
program sum(x: i8[N, 8], u: i8[N, 4], s: f32[], z: i32[], t: f32[], o: i32[], res: f32[N, 3])
  w: i8[3, 8] = param('w')
  ws: f32[3] = param('ws')
  v: u8[3, 2] = param('v')
  vs: f32[3] = param('vs')
  b: f32[3] = param('b')
  a: f32[N, 3] = quantized_linear(x, s, z, w, ws, 8, None, res)  # lin_r
  y: f32[N, 3] = quantized_linear(u, t, o, v, vs, 4, b, a, 'relu', None, None, 8, 4)  # lin_l
  return (y,)
"""


def _inputs(rows: int = 9) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def codes(width: int) -> Tensor:
        return torch.randint(-128, 128, (rows, width), generator=generator, dtype=torch.int8)

    scales = torch.tensor(0.1), torch.tensor(2).int(), torch.tensor(0.3), torch.tensor(-5).int()
    return codes(8), codes(4), *scales, torch.randn(rows, 3, generator=generator)


def test_two_layers_become_one_op() -> None:
    before, after, ctx = rewrite(FuseLinearSum(), SUM)
    assert body(after) == ["quantized_linear_sum"]
    fused = next(after.find("quantized_linear_sum")).args
    assert [i.name for i in fused["x"]] == ["x", "u"]
    assert fused["channels"] == [8, 4]
    assert fused["weight_bits"] == [8, 4]
    assert fused["residual"].name == "res"
    assert [r.module for r in ctx.remarks if r.done] == ["lin_r"]
    for program in (before, after):
        program.tensors |= {
            "w": torch.arange(-12, 12).reshape(3, 8).to(torch.int8),
            "v": torch.arange(7, 250, 41).reshape(3, 2).to(torch.uint8),
            "ws": torch.tensor([0.5, 1.0, 0.1]),
            "vs": torch.tensor([1.5, 0.2, 0.1]),
            "b": torch.tensor([1.0, -1.0, 3.0]),
        }
    check_values(before, after, *_inputs())
    check_second_run(FuseLinearSum(), after)
    assert dump(parse(dump(after))) == dump(after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("return (y,)", "return (y, a)", id="read-elsewhere"),
        pytest.param("8, None, res)", "8, b, res)", id="two-biases"),
        pytest.param("8, None, res)", "8, None, res, 'relu')", id="activation-between"),
    ],
)
def test_other_sums_stay(old: str, new: str) -> None:
    assert old in SUM
    before, after, _ = rewrite(FuseLinearSum(), SUM.replace(old, new))
    assert after is before


def test_codes_in_lists_are_verified_each_with_its_scale() -> None:
    text = """\
program p(x: f32[N, 8], s: f32[], z: i32[], t: f32[], w: i8[3, 8], v: f32[3])
  q: i8[N, 8] = quantize(x, s, z)
  r: i8[N, 8] = quantize(x, t, z)
  y: f32[N, 3] = quantized_linear_sum([q, r], [s, s], [z, z], [w, w], [v, v], *bits)
  return (y,)
"""
    text = text.replace("*bits", "[8, 8], [8, 8], [8, 8]")
    with pytest.raises(VerifyError, match="reads codes made with"):
        verify(parse(text))
    verify(parse(text.replace("[s, s]", "[s, t]")))


class _Relational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = RGCNConv(16, 24, num_relations=3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index, edge_index.sum(0) % 3)
        return out


@pytest.mark.parametrize("layers", [2, 4])
def test_layers_of_models_are_added_up_in_one_op(layers: int) -> None:
    torch.manual_seed(0)
    model = (SAGEConv(16, 24) if layers == 2 else _Relational()).eval()
    # Enough rows that a sum is made a block at a time.
    x, edge_index = torch.randn(400_000, 16), torch.randint(400_000, (2, 50_000))
    opt = gnnfx.optimize(model, "int8", (x, edge_index), calibration=[(x, edge_index)])
    text = opt.ir()
    assert text.count("= quantized_linear_sum(") == 1
    assert text.count("= quantized_linear(") == 0
    with torch.no_grad():
        want, got = model(x, edge_index), opt(x, edge_index)
    assert (got - want).abs().max() < 0.05 * want.abs().max()
