"""merge-attention-scores: one linear layer computes the scores of sources and destinations."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GATConv

import gnnfx
from gnnfx.ir.text import dump, parse
from gnnfx.pass_manager import PassContext
from gnnfx.passes.merge_attention_scores import MergeAttentionScores
from gnnfx.policy import Policy
from tests.passes.rewriting import body, check_second_run, check_values

GAT = """\
program gat(x: f32[N, 8], h: f32[N, 2, 4], dst: i64[E], src: i64[E], n: int[N])
  w: f32[2, 8] = param('w')
  v: f32[2, 8] = param('v')
  b: f32[2] = param('b')
  c: f32[2] = param('c')
  csr: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  rowptr: i32[N + 1] = getitem(csr, 0)
  src_1: i32[E] = getitem(csr, 1)
  s: f32[N, 2] = linear(x, w, b)  # conv
  d: f32[N, 2] = linear(x, v, c)  # conv
  z: f32[N, 8] = attend_gat(h, s, d, rowptr, src_1)  # conv
  return (z,)
"""
_SHAPES = {"w": (2, 8), "v": (2, 8), "b": (2,), "c": (2,)}


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        pytest.param("", "", True, id="biased"),
        pytest.param("w, b)  #", "w, b, None, 'relu')  #", False, id="activation-of-one"),
        pytest.param("v, c)  #", "v)  #", False, id="bias-of-one"),
        pytest.param("v, c)  #", "v, c, s)  #", False, id="one-adds-the-other"),
        pytest.param("return (z,)", "return (z, s)", False, id="read-elsewhere"),
        pytest.param("h, s, d,", "h, s, s,", False, id="one-score"),
    ],
)
def test_two_layers_on_the_same_rows(old: str, new: str, merged: bool) -> None:
    before = parse(GAT.replace(old, new) if old else GAT)
    generator = torch.Generator().manual_seed(1)
    for name, shape in _SHAPES.items():
        before.tensors[name] = torch.randn(shape, generator=generator)
    after = MergeAttentionScores().run(before, PassContext(Policy()))
    assert (after is not before) is merged
    assert body(after).count("linear") == (1 if merged else body(before).count("linear"))
    x, h = torch.randn(9, 8, generator=generator), torch.randn(9, 2, 4, generator=generator)
    ids = (torch.randint(9, (30,), generator=generator) for _ in range(2))
    check_values(before, after, x, h, *ids, 9)
    check_second_run(MergeAttentionScores(), after)
    assert dump(parse(dump(after))) == dump(after)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_layers_of_all_numbers_of_heads(heads: int, policy: str) -> None:
    torch.manual_seed(heads)
    model = GATConv(24, 6, heads=heads).eval()
    x, edge_index = torch.randn(50, 24), torch.randint(50, (2, 300))
    optimized = gnnfx.optimize(model, policy, (x, edge_index), calibration=[(x, edge_index)])
    assert f"f32[N, {2 * heads}]" in optimized.ir()
    with torch.no_grad():
        want = model(x, edge_index)
    tolerance = 1e-5 if policy == "fp32" else 0.05 * float(want.abs().max())
    torch.testing.assert_close(optimized(x, edge_index), want, rtol=0, atol=tolerance)


def test_scores_of_two_kinds_of_nodes_stay_apart() -> None:
    torch.manual_seed(0)
    model = GATConv((8, 8), 6, heads=2, add_self_loops=False).eval()
    x, edge_index = (torch.randn(9, 8), torch.randn(5, 8)), torch.tensor([[0, 8, 3], [1, 1, 4]])
    optimized = gnnfx.optimize(model, "fp32", (x, edge_index))
    assert "slice" not in optimized.ir()
    with torch.no_grad():
        torch.testing.assert_close(optimized(x, edge_index), model(x, edge_index))
