"""fold-channel-scale: constants per channel end up in the scales and biases of integer layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import MLP, GINConv

import gnnfx
from gnnfx.passes.fold_channel_scale import FoldChannelScale
from tests.passes.rewriting import check_second_run, rewrite

BEFORE = """\
program layer(q: i8[N, 8], s: f32[], z: i32[])
  codes: i8[4, 8] = param('codes')
  t: f32[4] = param('t')
  b: f32[4] = param('b')
  g: f32[4] = param('g')
  y: f32[N, 4] = quantized_linear(q, s, z, codes, t, 8, b)
  a: f32[N, 4] = aten.mul.Tensor(y, g)
  c: f32[N, 4] = aten.add.Tensor(a, g)
  return (c,)
"""


@pytest.mark.parametrize("bias", [", b", ""])
def test_scale_and_shift_are_folded(bias: str) -> None:
    before, after, _ = rewrite(FoldChannelScale(), BEFORE.replace(", b)", f"{bias})"))
    assert [i.op for i in after.instrs if i.definition is not None] == ["quantized_linear"]
    q, s, z = torch.randint(-9, 9, (5, 8), dtype=torch.int8), torch.tensor(0.1), torch.tensor(1)
    torch.testing.assert_close(after.run(q, s, z.int()), before.run(q, s, z.int()))
    check_second_run(FoldChannelScale(), after)


@pytest.mark.parametrize(
    "text",
    [
        BEFORE.replace("return (c,)", "return (c, y)"),
        BEFORE.replace("8, b)", "8, b, activation='relu')"),
        BEFORE.replace("(y, g)", "(y, s)").replace("(a, g)", "(a, s)"),
    ],
    ids=["read-elsewhere", "not-linear", "one-number"],
)
def test_what_has_to_stay(text: str) -> None:
    before, after, _ = rewrite(FoldChannelScale(), text)
    assert after is before


def test_a_norm_of_any_sign_behind_a_trained_layer() -> None:
    torch.manual_seed(0)
    conv = GINConv(MLP([64, 64, 64], norm=None))
    model = _Normed(conv)
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    call = (torch.randn(200, 64), torch.randint(200, (2, 900)))
    prepared = gnnfx.prepare(model, "int8-dq", call).train()
    for _ in range(3):
        prepared(*call)
    prepared.eval()
    small = gnnfx.convert(prepared)
    assert "aten.mul" not in small.ir()
    with torch.no_grad():
        want, got = prepared(*call), small(*call)
    assert (got - want).abs().gt(1e-5 * want.abs().max()).float().mean() < 1e-3


class _Normed(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.last = conv, nn.BatchNorm1d(64), nn.Linear(64, 48)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.norm(self.conv(x, edge_index)).relu())
        return out
