"""observe-as-paper: the values that Degree-Quant's own code rounds, for GCN, GAT and GIN."""

from __future__ import annotations

import pytest
import torch

import gnnfx
from gnnfx.errors import PolicyError
from gnnfx.passes.observe_as_paper import ObserveAsPaper
from gnnfx.policy import PRESETS
from tests.models import graph, make
from tests.passes.rewriting import check_second_run, check_values, edges, rewrite

PAPER = PRESETS["degree-quant-paper"]
BEFORE = """\
program conv(x: f32[N, 8], src: i64[E], dst: i64[E], w: f32[E])
  u: f32[4, 8] = param('lin.weight')
  b: f32[4] = param('bias')
  n: int[N] = aten.sym_size.int(x, 0)
  h: f32[N, 4] = aten.linear.default(x, u)
  g: f32[E, 4] = gather(h, src)
  v: f32[E, 1] = aten.view.default(w, [-1, 1])
  m: f32[E, 4] = aten.mul.Tensor(v, g)
  a: f32[N, 4] = scatter(m, dst, n, 'sum')
  y: f32[N, 4] = aten.add.Tensor(a, b)
  return (y,)
"""


def test_a_convolution_is_rounded_where_the_paper_rounds_it() -> None:
    before, after, _ = rewrite(ObserveAsPaper(), BEFORE, PAPER)
    observed = {o.args["name"]: o for o in after.find("observe")}
    assert set(observed) == {"x", "h", "v", "m", "a", "y"}
    assert observed["m"].args["owner"].name == "src"
    assert all(o.args["owner"] is None for name, o in observed.items() if name != "m")
    src, dst = edges(6, 20)
    check_values(before, after, torch.randn(6, 8), src, dst, torch.rand(20))


def test_a_second_run_changes_nothing() -> None:
    _, after, _ = rewrite(ObserveAsPaper(), BEFORE, PAPER)
    check_second_run(ObserveAsPaper(), after, PAPER)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        # Two layers; inputs, features, message, aggregate, update each, and one norm for both.
        pytest.param("gcn", 11, id="gcn"),
        # Inputs, features, two attention vectors, logits, message, aggregate, update each.
        pytest.param("gat", 16, id="gat"),
    ],
)
def test_models_have_as_many_sites_as_the_tables_of_the_paper(name: str, sites: int) -> None:
    module = gnnfx.prepare(make(name), "degree-quant-paper", graph(40, 160))
    assert len(module.quantizers()) == sites
    loss = module(*graph(60, 240)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    with pytest.raises(PolicyError, match="cannot be converted"):
        gnnfx.convert(module)
