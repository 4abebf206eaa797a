"""Prepared modules under torch.compile and autocast; programs after and without training."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

import gnnfx
from gnnfx import Policy, Quantize
from tests.models import graph, make


def prepared(name: str) -> gnnfx.PreparedModule:
    return gnnfx.prepare(make(name), "int8-dq", graph(40, 160))


def gradients(module: nn.Module, call: nn.Module) -> dict[str, torch.Tensor]:
    """Of one step whose dropout and masks are drawn with the same seed."""
    torch.manual_seed(0)
    call(*graph(60, 240)).square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_compiled_training_is_the_same_training() -> None:
    module = prepared("gcn")
    twin = copy.deepcopy(module)
    want = gradients(twin, twin)
    got = gradients(module, torch.compile(module))  # type: ignore[arg-type]
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    for name, quantizer in module.quantizers().items():
        assert torch.equal(quantizer.scale, twin.quantizers()[name].scale)


def test_a_module_trained_in_bfloat16_converts() -> None:
    module = prepared("sage")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(*graph(60, 240)).float().square().mean()
    loss.backward()
    optimizer.step()
    inputs = graph(200, 900)
    with torch.no_grad():
        want = module.eval()(*inputs)
    gap = (gnnfx.convert(module)(*inputs) - want).abs() / want.abs().max()
    assert float((gap > 1e-5).float().mean()) <= 2e-2


def ops(module: gnnfx.OptimizedModule) -> Counter[str]:
    """How often the program calls each op."""
    calls = [
        line.split(" = ")[1].split("(")[0] for line in module.ir().split("\n") if " = " in line
    ]
    return Counter(call for call in calls if call != "param")


@pytest.mark.parametrize("name", ["gcn", "sage"])
def test_a_trained_program_calls_the_ops_of_one_that_was_not_trained(name: str) -> None:
    module = prepared(name)
    module(*graph(60, 240))
    inputs = graph(40, 160)
    policy = Policy(Quantize(layers="all"))
    untrained = gnnfx.optimize(make(name), policy, inputs, calibration=[inputs])
    assert ops(gnnfx.convert(module)) == ops(untrained)
