"""max_drop: what costs too much falls back, the rest stays, and wrong metrics are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import gnnfx
from gnnfx import Policy, Quantize, Report
from gnnfx.errors import InputError, PolicyError
from gnnfx.fallback import Limit
from gnnfx.noise import sqnr
from tests.models import IN, OUT, graph, make

ALL = Policy(Quantize(layers="all"))
INPUTS = graph(200, 800)


class Outlier(nn.Module):
    """Three layers; the middle one reads a channel that is far larger than all others.

    The channel is constant and cancelled by a weight, so that only rounding makes it matter.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = pyg.SAGEConv(IN, 16)
        self.middle = nn.Linear(16, 16)
        self.last = nn.Linear(16, OUT)
        with torch.no_grad():
            self.first.lin_l.weight[0], self.first.lin_r.weight[0] = 0.0, 0.0
            self.first.lin_l.bias[0] = 5e3
            self.middle.weight[:, 0] = 0.0

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x, edge_index)
        return self.last(self.middle(h).relu())  # type: ignore[no-any-return]


def agreement(model: nn.Module) -> Callable[[nn.Module], float]:
    """Share of nodes that get the class that `model` gives them."""
    with torch.no_grad():
        wanted = model(*INPUTS).argmax(1)
    return lambda module: float((module(*INPUTS).argmax(1) == wanted).float().mean())


def optimize(model: nn.Module, policy: Policy = ALL, **limit: Any) -> gnnfx.OptimizedModule:
    return gnnfx.optimize(model, policy, INPUTS, calibration=[INPUTS], **limit)


def runs_as(module: gnnfx.OptimizedModule) -> dict[str, str]:
    return {layer.module: " ".join(layer.runs_as) for layer in module.report.layers}


def test_the_layer_with_the_outlier_falls_back_and_the_rest_stays() -> None:
    model = Outlier().eval()
    metric = agreement(model)
    assert metric(optimize(model)) < 0.8
    module = optimize(model, max_drop=0.05, metric=metric)
    assert metric(module) >= 0.95
    found = runs_as(module)
    assert "float32" in found["middle"]
    assert all("quantized_linear" in found[f"first.lin_{part}"] for part in "lr")
    assert "quantized_linear" in found["last"]
    trials = module.report.trials
    assert trials is not None
    assert trials.sensitivities[0].layer == "middle"
    assert trials.model_metric == 1.0
    assert trials.trials[0].change == "as asked"
    assert trials.trials[-1].metric == metric(module)
    assert (trials.trials[1].change, trials.trials[1].kept) == ("middle: float32", True)
    report = module.report
    assert Report.from_dict(report.to_dict()) == report
    assert "middle: float32" in str(report)


def test_nothing_falls_back_where_nothing_has_to() -> None:
    model = make("gcn")
    module = optimize(model, max_drop=1.0, metric=agreement(model))
    assert module.ir() == optimize(model).ir()
    trials = module.report.trials
    assert trials is not None
    assert [t.change for t in trials.trials] == ["as asked"]


def test_four_bits_become_eight_before_float() -> None:
    model = make("gcn")
    with torch.no_grad():
        wanted = model(*INPUTS)

    def negative_error(module: nn.Module) -> float:
        return -float((module(*INPUTS) - wanted).norm() / wanted.norm())

    module = optimize(
        model, Policy(Quantize(4, 4, layers="all")), max_drop=0.1, metric=negative_error
    )
    trials = module.report.trials
    assert trials is not None
    assert trials.trials[-1].metric >= -0.1 or not trials.trials[-1].kept
    changes = [t.change for t in trials.trials[1:] if "back" not in t.change]
    assert all(change.endswith(": int8") for change in changes)
    bits = [t.bits for t in trials.trials[: len(changes) + 1]]
    assert bits == sorted(bits)
    assert bits[0] == 4.0


def test_a_change_that_is_not_needed_is_taken_back() -> None:
    model = Outlier().eval()
    policy = Policy(Quantize(4, 4, layers="all"))

    def last_layer_in_float(module: nn.Module) -> float:
        texts = runs_as(module) if isinstance(module, gnnfx.OptimizedModule) else {}
        return 0.0 if "quantized" in texts.get("last", "") else 1.0

    module = optimize(model, policy, max_drop=0.5, metric=last_layer_in_float)
    found = runs_as(module)
    assert "float32" in found["last"]
    assert all("int4" in found[name] for name in ("first.lin_l", "first.lin_r", "middle"))


def test_everything_may_fall_back() -> None:
    model = make("gcn")
    exact = agreement(model)
    module = optimize(
        model,
        max_drop=0.0,
        metric=lambda m: exact(m) if "quantized" not in getattr(m, "ir", str)() else 0.0,
    )
    assert "quantized" not in module.ir()
    with torch.no_grad():
        torch.testing.assert_close(module(*INPUTS), model(*INPUTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_drop": -0.1, "metric": len}, r"max_drop must be .* got -0\.1"),
        ({"max_drop": math.nan, "metric": len}, "max_drop must be .* got nan"),
        ({"max_drop": True, "metric": len}, "max_drop must be .* got True"),
        ({"max_drop": 0.5}, "max_drop needs metric, .* got None"),
        ({"metric": lambda m: 1.0}, "metric judges together with max_drop"),
    ],
)
def test_wrong_limits_are_named(limit: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        optimize(make("gcn"), **limit)


@pytest.mark.parametrize("value", ["1", None, math.nan, math.inf, INPUTS[0], 1j])
def test_a_metric_that_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(InputError, match="must return a finite number, got"):
        Limit(0.5, lambda module: value).measure(nn.Linear(1, 1))
    assert Limit(0.5, lambda module: torch.tensor(2.0)).measure(nn.Linear(1, 1)) == 2.0


def test_a_metric_that_float_cannot_meet_is_named() -> None:
    def only_the_model(module: nn.Module) -> float:
        return 0.0 if isinstance(module, gnnfx.OptimizedModule) else 1.0

    with pytest.raises(InputError, match="expected a metric that gives the same"):
        optimize(make("gcn"), max_drop=0.5, metric=only_the_model)
    with pytest.raises(PolicyError, match="the policy has none"):
        optimize(make("gcn"), Policy(), max_drop=0.5, metric=lambda m: 1.0)


def test_sqnr_is_in_decibels() -> None:
    wanted = torch.ones(100)
    assert sqnr([wanted], [1.1 * wanted]) == pytest.approx(20.0, abs=1e-3)
    assert sqnr([wanted], [wanted]) == pytest.approx(300.0)
