"""Scales by in-degree: nodes of few neighbours keep their precision beside hubs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN, GIN, GraphSAGE

import gnnfx
from gnnfx.errors import PolicyError
from gnnfx.noise import sqnr
from gnnfx.observers import bucket_factors, shared_range
from gnnfx.passes.scale_by_degree import ScaleByDegree
from gnnfx.policy import PRESETS, Policy, Quantize
from tests.passes.rewriting import rewrite

Scales = Literal["tensor", "degree"]


def hubs() -> tuple[Tensor, Tensor]:
    """300 nodes of which two have most of the edges, and some have none."""
    torch.manual_seed(0)
    weight = (torch.arange(300) + 1.0).pow(-1.5)
    ends = [torch.multinomial(weight, 4000, replacement=True) for _ in range(2)]
    return torch.randn(300, 16), torch.stack(ends)


def integers(model: nn.Module, scales: Scales, bits: Literal[8, 4] = 8) -> gnnfx.OptimizedModule:
    call = hubs()
    policy = Policy(Quantize(bits, bits, scales=scales, layers="all"))
    return gnnfx.optimize(model, policy, call, calibration=[call])


@pytest.mark.parametrize("bits", [8, 4])
def test_most_nodes_of_a_sum_gain_by_it(bits: Literal[8, 4]) -> None:
    call = hubs()
    model = GIN(16, 16, 2, 8).eval()
    want = model(*call).detach()
    few = torch.bincount(call[1][1], minlength=300) < 16
    noise = {
        scales: sqnr([want[few]], [integers(model, scales, bits)(*call)[few]])
        for scales in ("tensor", "degree")
    }
    assert noise["degree"] > noise["tensor"] + 6  # at least one bit


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [GIN, GraphSAGE])
@pytest.mark.parametrize("estimator", ["clipped", "learned-step"])
def test_what_was_trained_is_what_runs(
    kind: type[nn.Module],
    bits: Literal[8, 4],
    estimator: Literal["clipped", "learned-step"],
) -> None:
    preset = PRESETS[f"int{bits}-dq"].quantize
    assert preset is not None
    training = replace(preset.training, estimator=estimator)
    policy = Policy(replace(preset, scales="degree", training=training))
    call = hubs()
    prepared = gnnfx.prepare(kind(16, 16, 2, 8), policy, call).train()
    for _ in range(3):
        prepared(*call).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
    prepared.eval()
    want, got = prepared(*call).detach(), gnnfx.convert(prepared)(*call).detach()
    # A code of a hub that differs at a tie moves the sums of its neighbours by a step.
    assert (got - want).abs().gt(1e-4 * want.abs().max()).float().mean() < 0.05
    copied = gnnfx.prepare(kind(16, 16, 2, 8), policy, call).eval()
    copied.load_state_dict(prepared.state_dict())
    assert torch.equal(copied(*call), want)


def test_other_graphs_have_other_degrees() -> None:
    x, edge_index = hubs()
    model = GIN(16, 16, 2, 8).eval()
    module, plain = integers(model, "degree"), integers(model, "tensor")
    for edges in (4000, 400, 0):
        part = edge_index[:, :edges]
        want = model(x, part).detach()
        # Without edges, what is left of the noise comes from rows that share a scale to be summed.
        assert sqnr([want], [module(x, part)]) > sqnr([want], [plain(x, part)]) - 1
    alone = torch.zeros(2, 0, dtype=torch.int64)
    assert module(x[:1], alone).isfinite().all()


def test_rows_that_are_summed_share_a_scale_and_the_report_says_so() -> None:
    layers = integers(GCN(16, 16, 2, 8).eval(), "degree").report.layers
    done = [text for layer in layers for text in layer.done]
    left = [text for layer in layers for text in layer.left]
    assert any("one scale for each bucket" in text for text in done)
    assert any("sums its rows together" in text for text in left)


def test_ranges_of_one_call_have_no_degrees() -> None:
    with pytest.raises(PolicyError, match="pass calibration"):
        gnnfx.optimize(GIN(16, 16, 2, 8), Policy(Quantize(scales="degree")), hubs())
    with pytest.raises(PolicyError, match="scales must be one of"):
        Quantize(scales="node")  # type: ignore[arg-type]


def test_buckets_reach_equally_far() -> None:
    factors = bucket_factors(torch.tensor([0.0, 1.0, 4.0, 0.0, 8.0]))
    assert factors.tolist() == [8.0, 8.0, 2.0, 2.0, 1.0]
    assert bucket_factors(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    factors, shared = shared_range({1: (-1.0, 0.5), 2: (0.0, 4.0)}, 4)
    assert factors.tolist() == [4.0, 4.0, 1.0, 1.0]
    assert shared == (-4.0, 4.0)


def test_one_scale_leaves_the_program_alone() -> None:
    assert "degree_bucket" not in integers(GIN(16, 16, 1, 8).eval(), "tensor").ir()


BEFORE = """\
program layer(x: f32[N, 8], edge_index: i64[2, E])
  w: f32[4, 8] = param('w')
  n: int[N] = aten.sym_size.int(x, 0)
  s: i64[E] = aten.select.int(edge_index, 0, 0)
  d: i64[E] = aten.select.int(edge_index, 0, 1)
  c: (i32[N + 1], i32[E], i32[E]) = compress(s, d, n)
  p: i32[N + 1] = getitem(c, 0)
  q: i32[E] = getitem(c, 1)
  a: f32[N, 8] = observe(x, 'x')
  y: f32[N, 4] = aten.linear.default(a, w)
  b: f32[N, 4] = observe(y, 'y')
  z: f32[N, 4] = aggregate(b, p, q)
  return (z,)
"""


def test_observers_of_linear_layers_get_the_buckets() -> None:
    _, after, ctx = rewrite(ScaleByDegree(), BEFORE, Policy(Quantize(scales="degree")))
    (bucket,) = after.find("degree_bucket")
    first, second = after.find("observe")
    assert first.args["bucket"] == bucket
    assert bucket.args["edge_index"].name == "edge_index"
    assert second.args["bucket"] is None
    assert [r.done for r in ctx.remarks] == [True, False]
