"""tune=True: what is measured slower goes, answers and numerics stay, the report tells."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN

import gnnfx
from gnnfx import tune
from gnnfx.backend.module import KeptModel
from gnnfx.errors import InputError
from gnnfx.report import Report
from tests.models import graph, make

Seconds = Callable[[nn.Module], float]


def _time_by(monkeypatch: pytest.MonkeyPatch, seconds: Seconds) -> list[str]:
    """Let `seconds` of a module stand for its time; the changes that are timed, as they come."""
    changes: list[str] = []
    compare = tune._compare

    def timed(change: str, candidate: nn.Module, best: nn.Module, *rest: object) -> bool:
        changes.append(change)
        times = {"candidate": [seconds(candidate)], "best": [seconds(best)]}
        with monkeypatch.context() as patch:
            patch.setattr(tune, "interleaved_seconds", lambda calls, **_: times)
            return compare(change, candidate, best, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tune, "_compare", timed)
    return changes


def _sparse_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    _, edge_index = graph(50, 200)
    return (torch.rand(50, 200) < 0.02).float(), edge_index


def test_a_rewrite_that_costs_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = _time_by(
        monkeypatch,
        lambda m: 9.0 if not isinstance(m, gnnfx.OptimizedModule) or "sparse" in m.ir() else 1.0,
    )
    inputs = _sparse_inputs()
    model = GCN(200, 16, 2, 5).eval()
    opt = gnnfx.optimize(model, "fp32", inputs, tune=True)
    assert "sparse_linear" not in opt.ir()
    assert "without select-sparse-linear at convs.0.lin" in changes
    assert changes[-1] == "the model as it is"
    assert opt.report.tuned is not None
    kept = [a.change for a in opt.report.tuned.alternatives if a.kept]
    assert kept == ["without select-sparse-linear at convs.0.lin"]
    with torch.no_grad():
        torch.testing.assert_close(opt(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
    assert "best so far" in str(opt.report)
    assert Report.from_dict(json.loads(opt.report.to_json())) == opt.report


def test_single_layers_go_back_to_float(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(module: nn.Module) -> float:
        if not isinstance(module, gnnfx.OptimizedModule):
            return 99.0
        return abs(module.ir().count("= quantized_") - 1.5)

    _time_by(monkeypatch, seconds)
    policy = gnnfx.Policy(gnnfx.Quantize(layers="all"))
    opt = gnnfx.optimize(make("sage"), policy, graph(40, 160), tune=True)
    assert opt.report.tuned is not None
    assert sum(a.kept for a in opt.report.tuned.alternatives) > 1
    assert "= quantized_" in opt.ir()


def test_all_layers_go_back_to_float_where_the_first_integers_cost_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seconds(module: nn.Module) -> float:
        if not isinstance(module, gnnfx.OptimizedModule):
            return 99.0
        quantized = module.ir().count("= quantized_")
        return 50.0 - quantized if quantized else 5.0 + module.ir().count("sparse_linear")

    _time_by(monkeypatch, seconds)
    model, inputs = GCN(200, 16, 2, 5).eval(), _sparse_inputs()
    opt = gnnfx.optimize(model, "int8", inputs, tune=True)
    assert opt.report.tuned is not None
    kept = [a.change for a in opt.report.tuned.alternatives if a.kept]
    assert kept == ["all layers in float32", "without select-sparse-linear at convs.0.lin"]
    with torch.no_grad():
        torch.testing.assert_close(opt(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_integers_that_save_nothing_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(module: nn.Module) -> float:
        if not isinstance(module, gnnfx.OptimizedModule):
            return 99.0
        return 1.0 if "= quantized_" in module.ir() else 0.99

    _time_by(monkeypatch, seconds)
    opt = gnnfx.optimize(make("gcn"), "int8", graph(40, 160), tune=True)
    assert "= quantized_" not in opt.ir()


def test_a_model_that_is_faster_as_it_is_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _time_by(monkeypatch, lambda m: 2.0 if isinstance(m, gnnfx.OptimizedModule) else 1.0)
    model, inputs = make("gcn"), graph(40, 160)
    opt = gnnfx.optimize(model, "fp32", inputs, tune=True)
    assert isinstance(opt, KeptModel)
    assert "measured faster as it is" in opt.report.kept[0][1]
    assert opt.report.tuned is not None
    assert opt.report.tuned.alternatives[-1].kept
    with torch.no_grad():
        assert torch.equal(opt(*inputs), model(*inputs))


def test_real_times() -> None:
    model, inputs = make("gcn"), graph(500, 4000)
    opt = gnnfx.optimize(model, "fp32", inputs, tune=True)
    assert opt.report.tuned is not None
    assert all(a.milliseconds > 0 for a in opt.report.tuned.alternatives)
    with torch.no_grad():
        torch.testing.assert_close(opt(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no example_inputs"):
        gnnfx.optimize(make("gcn"), "fp32", tune=True)
    with pytest.raises(InputError, match="max_drop, too"):
        gnnfx.optimize(
            make("gcn"), "int8", graph(40, 160), tune=True, max_drop=0.1, metric=lambda m: 1.0
        )
