"""keep-heads: which sums keep their heads, and that values stay."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import gnnfx
from gnnfx.passes.keep_heads import KeepHeads
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

HEADS = """\
program heads(x: f32[N, 2, 8], l: f32[E, 2], o: f32[E, 2, 1], src: i64[E], dst: i64[E])
  n: int[N] = aten.sym_size.int(x, 0)
  j: f32[E, 2, 8] = gather(x, src)
  s: f32[E, 2] = edge_softmax(l, dst, n)
  w: f32[E, 2, 1] = aten.view.default(s, [-1, 2, 1])
  m: f32[E, 2, 8] = aten.mul.Tensor(j, w)
  r: f32[E, 16] = aten.view.default(m, [-1, 16])
  y: f32[N, 16] = scatter(r, dst, n, 'sum')
  return (y,)
"""


def _values() -> list[Tensor]:
    return [torch.randn(9, 2, 8), torch.randn(30, 2), torch.randn(30, 2, 1), *edges(7, 30)]


def test_heads_are_joined_after_their_sum() -> None:
    before, after, _ = rewrite(KeepHeads(), HEADS)
    assert body(after)[-2:] == ["scatter", "aten.view.default"]
    check_values(before, after, *_values())
    check_second_run(KeepHeads(), after)


def test_rows_are_parted_before_they_are_gathered() -> None:
    text = HEADS.replace("x: f32[N, 2, 8]", "x: f32[N, 16]")
    text = text.replace("  j:", "  g: f32[E, 16] = gather(x, src)\n  j:")
    text = text.replace("= gather(x, src)\n  s:", "= aten.view.default(g, [-1, 2, 8])\n  s:")
    before, after, _ = rewrite(KeepHeads(), text)
    (gather,) = after.find("gather")
    assert gather.arg.op == "aten.view.default"
    check_values(before, after, torch.randn(9, 16), *_values()[1:])
    check_second_run(KeepHeads(), after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("'sum'", "'max'", id="maximum"),
        pytest.param("Tensor(j, w)", "Tensor(j, o)", id="no-softmax"),
        pytest.param("return (y,)", "return (y, r)", id="messages-are-returned"),
    ],
)
def test_others_stay(old: str, new: str) -> None:
    before, after, _ = rewrite(KeepHeads(), HEADS.replace(old, new))
    assert after is before


class _Han(nn.Module):
    """HANConv on tensors."""

    def __init__(self) -> None:
        super().__init__()
        metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
        self.conv = pyg.HANConv(12, 16, metadata, heads=2)

    def forward(self, a: Tensor, b: Tensor, there: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        out = self.conv({"a": a, "b": b}, {("a", "to", "b"): there, ("b", "to", "a"): back})
        return out["a"], out["b"]


def test_han_is_attention() -> None:
    torch.manual_seed(0)
    model = _Han().eval()
    inputs = (*torch.randn(2, 40, 12), *(torch.stack(edges(40, count)) for count in (200, 300)))
    module = gnnfx.optimize(model, "fp32", inputs)
    assert module.ir().count("= attend_gat(") == 2
    with torch.no_grad():
        for got, want in zip(module(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
