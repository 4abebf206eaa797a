"""Widths of single layers: which pattern gives which layer how many bits, and that codes follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gnnfx
from gnnfx import Bits, Policy, Quantize, Training
from gnnfx.errors import PolicyError
from gnnfx.policy import matches
from tests.models import graph, make


def policy(overrides: dict[str, Bits], **changes: Any) -> Policy:
    return Policy(Quantize(layers="all", overrides=overrides), **changes)


def optimize(name: str, chosen: Policy) -> gnnfx.OptimizedModule:
    inputs = graph(40, 160)
    return gnnfx.optimize(make(name), chosen, inputs, calibration=[inputs])


def lines(module: nn.Module, op: str) -> dict[str, str]:
    """The line of each call of `op` by the module it comes from."""
    found = [line for line in module.ir().split("\n") if f"= {op}(" in line]  # type: ignore[operator]
    return {line.rpartition("# ")[2]: line for line in found}


@pytest.mark.parametrize(
    ("pattern", "module", "expected"),
    [
        ("convs.0", "convs.0", True),
        ("convs.0", "convs.0.lin", True),
        ("convs.0", "convs.01.lin", False),
        ("convs.*", "convs.1.lin", True),
        ("*.lin", "convs.1.lin", True),
        ("lin", "convs.1.lin", False),
        ("*", "", True),
    ],
)
def test_a_pattern_names_a_module_and_its_parts(pattern: str, module: str, expected: bool) -> None:
    assert matches(pattern, module) is expected


def test_each_layer_gets_the_bits_of_its_pattern() -> None:
    module = optimize("sage", policy({"convs.1": Bits(weight=4), "convs.1.lin_l": Bits(2)}))
    weights = {m: line for m, line in lines(module, "quantized_linear").items()}
    assert "weight_bits=2" in weights["convs.1.lin_l"]
    assert "weight_bits=4" in weights["convs.1.lin_r"]
    assert all("weight_bits=8" in weights[f"convs.0.{part}"] for part in ("lin_l", "lin_r"))
    widths = {layer.module: layer.runs_as for layer in module.report.layers}
    assert "quantized_linear int4" in widths["convs.1.lin_r"]


def test_a_value_has_the_most_bits_that_a_reader_wants() -> None:
    program = gnnfx.prepare(
        make("sage"),
        policy({"*": Bits(activation=2), "convs.0.lin_r": Bits(activation=4)}),
        graph(40, 160),
    ).origin.program
    observed = {o.args["name"]: o.args["bits"] for o in program.find("observe")}
    assert observed["x"] == 4  # convs.0.lin_r and the aggregate of convs.0 read it
    assert set(observed.values()) == {2, 4}


@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
def test_trained_layers_of_several_widths_convert(name: str) -> None:
    overrides = {"convs.0": Bits(4, 4), "convs.1": Bits(weight=2)}
    training = Training("learned-step", "mse")
    chosen = Policy(Quantize(layers="all", overrides=overrides, training=training))
    module = gnnfx.prepare(make(name), chosen, graph(40, 160))
    x, edge_index = graph(200, 900)
    module(x, edge_index).square().sum().backward()
    with torch.no_grad():
        want = module.eval()(x, edge_index)
    got = gnnfx.convert(module)(x, edge_index)
    gap = (got - want).abs() / want.abs().max()
    assert float((gap > 1e-5).float().mean()) <= 2e-2


def test_skipping_a_module_skips_its_parts() -> None:
    module = optimize("gcn", Policy(Quantize(layers="all"), skip=("convs.0",)))
    assert all(name.startswith("convs.1") for name in lines(module, "quantized_linear"))
    assert lines(module, "quantized_linear")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (policy({"conv.0": Bits(4)}), "overrides: pattern 'conv.0' matches no layer"),
        (policy({}, skip=("lin",)), r"skip: pattern 'lin' matches no layer; expected one of \['c"),
    ],
)
def test_a_pattern_without_a_layer_is_an_error(chosen: Policy, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        optimize("gcn", chosen)
    with pytest.raises(PolicyError, match=message):
        gnnfx.prepare(make("gcn"), chosen, graph(40, 160))


def test_wrong_overrides_are_named() -> None:
    with pytest.raises(PolicyError, match="weight must be one of"):
        Bits(weight=3)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"overrides\['a'\] must be a gnnfx.Bits, got 4"):
        Quantize(overrides={"a": 4})  # type: ignore[dict-item]
    paper = Training(placement="paper")
    with pytest.raises(PolicyError, match="expected no skip and no overrides"):
        Policy(Quantize(training=paper, overrides={"a": Bits(4)}))
