"""Wrong input: which argument, what was given, what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn

import gnnfx
from gnnfx.errors import CalibrationError, GnnfxError, InputError, PolicyError
from tests.models import graph, make


@pytest.fixture(scope="module")
def module() -> gnnfx.OptimizedModule:
    return gnnfx.optimize(make("gcn"), "fp32", graph(40, 160))


X, E = graph(30, 100)
CALLS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "float-index": (
        lambda m: m(X, E.float()),
        "'edge_index' must be i64[2, E], got dtype torch.fl",
    ),
    "too-high": (lambda m: m(X, E + 25), "'edge_index' holds node 54; expected 0 <= node < 30"),
    "negative": (lambda m: m(X, E - 5), "'edge_index' holds node -5; expected 0 <= node < 30"),
    "narrow-x": (lambda m: m(X[:, :7], E), "'x' must be f32[N, 20], got shape (30, 7)"),
    "double-x": (lambda m: m(X.double(), E), "'x' must be f32[N, 20], got dtype torch.float64"),
    "flat-index": (lambda m: m(X, E[0]), "'edge_index' must be i64[2, E], got shape (100,)"),
    "no-tensor": (lambda m: m(X, None), "'edge_index' must be i64[2, E], got None"),
    "missing": (lambda m: m(X), "argument 'edge_index' is missing"),
    "unknown": (lambda m: m(X, E, weights=1), "unknown argument 'weights'"),
    "twice": (lambda m: m(X, E, x=X), "argument 'x' was given twice"),
    "other-form": (lambda m: m(X, E, torch.rand(100)), "optimize the model with an example"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_calls(
    module: gnnfx.OptimizedModule, call: Callable[[nn.Module], Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        call(module)
    assert message in str(error.value)
    assert isinstance(error.value, (GnnfxError, ValueError))


def test_int32_indices_are_taken(module: gnnfx.OptimizedModule) -> None:
    assert torch.equal(module(X, E.int()), module(X, E))


def test_after_an_error_the_module_still_works(module: gnnfx.OptimizedModule) -> None:
    want = module(X, E)
    with pytest.raises(InputError):
        module(X, E + 25)
    assert torch.equal(module(X, E), want)


class Opaque(nn.Module):
    """Needs an argument whose form cannot be guessed."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, weather: Any) -> Any:
        return self.lin(x) * weather


class Dense(nn.Module):
    """Too small a layer on float input, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.lin(x)  # type: ignore[no-any-return]


POLICIES: dict[str, tuple[Callable[[], Any], str]] = {
    "quantize": (lambda: gnnfx.Policy(8), "quantize must be a gnnfx.Quantize or None, got 8"),  # type: ignore[arg-type]
    "prune": (lambda: gnnfx.Policy(prune=0.5), "prune must be a gnnfx.Prune or None, got 0.5"),  # type: ignore[arg-type]
    "skip": (lambda: gnnfx.Policy(skip="lin"), "skip must be a tuple of patterns, got 'lin'"),  # type: ignore[arg-type]
    "ratio": (lambda: gnnfx.Prune("0.5"), "ratio must lie in [0, 1), got '0.5'"),  # type: ignore[arg-type]
    "end": (lambda: gnnfx.Prune(end=1.5), "end must be a whole number, got 1.5"),  # type: ignore[arg-type]
    "ratios": (lambda: gnnfx.Prune(overrides=[0.5]), "overrides must be a dict with patterns"),  # type: ignore[arg-type]
    "percentile": (lambda: gnnfx.Quantize(percentile="high"), "percentile must lie in (0.5, 1]"),  # type: ignore[arg-type]
    "training": (lambda: gnnfx.Quantize(training="dq"), "training must be a gnnfx.Training"),  # type: ignore[arg-type]
    "protect": (lambda: gnnfx.Training(protect=0.1), "protect must be (p_min, p_max) with 0"),  # type: ignore[arg-type]
    "sample": (lambda: gnnfx.Training(sample=0.5), "sample must be 1 or more, or None"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("make_policy", "message"), POLICIES.values(), ids=POLICIES)
def test_policies_name_the_field_that_is_wrong(
    make_policy: Callable[[], Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        make_policy()


OPTIMIZE: dict[str, tuple[Callable[[], Any], type[GnnfxError], str]] = {
    "preset": (
        lambda: gnnfx.optimize(make("gcn"), "int7"),
        PolicyError,
        "policy must be one of ['degree-quant-paper', 'fp32', 'int4',",
    ),
    "bits": (lambda: gnnfx.Quantize(weight_bits=3), PolicyError, "weight_bits must be one of"),  # type: ignore[arg-type]
    "percentile": (lambda: gnnfx.Quantize(percentile=2.0), PolicyError, "(0.5, 1], got 2.0"),
    "model": (lambda: gnnfx.optimize(3), InputError, "must be a torch.nn.Module, got int"),  # type: ignore[arg-type]
    "unmakeable": (lambda: gnnfx.optimize(Opaque()), InputError, "cannot make argument 'weather'"),
    "nothing-to-do": (
        lambda: gnnfx.optimize(Dense(), "int8", (X, E)),
        PolicyError,
        "would quantize nothing in this model",
    ),
    "nothing-at-all": (
        lambda: gnnfx.optimize(nn.Tanh(), "int8", (X,)),
        PolicyError,
        "it has no linear layer and no sum over neighbours",
    ),
    "empty": (
        lambda: gnnfx.optimize(make("gcn"), "int8", (X, E), calibration=[]),
        CalibrationError,
        "calibration is empty",
    ),
    "nan": (
        lambda: gnnfx.optimize(make("gcn"), "int8", (X, E), calibration=[(X * float("nan"), E)]),
        CalibrationError,
        "calibration[0]: argument 'x' holds NaN or Inf",
    ),
    "overflow": (
        lambda: gnnfx.optimize(make("gin"), "int8", (X, E), calibration=[(X.sign() * 3e38, E)]),
        CalibrationError,
        "holds NaN or Inf in sample 0",
    ),
    "no-tuples": (
        lambda: gnnfx.optimize(make("gcn"), "int8", (X, E), calibration=X),
        CalibrationError,
        "must be an iterable of argument tuples, got Tensor",
    ),
    "tensor-sample": (
        lambda: gnnfx.optimize(make("gcn"), "int8", (X, E), calibration=[X]),
        CalibrationError,
        "calibration[0] must be a tuple of forward arguments, got Tensor",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), OPTIMIZE.values(), ids=OPTIMIZE)
def test_optimize(call: Callable[[], Any], kind: type[GnnfxError], message: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)


def test_a_model_without_sizes_must_be_called_once_before() -> None:
    model = pyg.GCN(-1, 8, num_layers=2, out_channels=3).eval()
    for function in (gnnfx.optimize, gnnfx.prepare):
        with pytest.raises(InputError, match=r"decides: convs\.0\.lin\.weight; expected"):
            function(model, "fp32", (X, E))
    want = model(X, E)
    torch.testing.assert_close(gnnfx.optimize(model, "fp32", (X, E))(X, E), want)
