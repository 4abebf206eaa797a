"""torch.compile of an optimized module: one graph, the same outputs, and no stale structure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import gnnfx
from tests.models import graph, make


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("policy", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["gcn", "gat"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_equals_uncompiled(name: str, policy: str) -> None:
    data = None if policy == "fp32" else [graph(40, 160)]
    module = gnnfx.optimize(make(name), policy, graph(40, 160), calibration=data)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for sizes in [(30, 100), (50, 300), (64, 10)]:
            inputs = graph(*sizes)
            torch.testing.assert_close(compiled(*inputs), module(*inputs))
        x, edge_index = graph(30, 100)
        compiled(x, edge_index)
        edge_index[0] = (edge_index[0] + 1) % 30
        torch.testing.assert_close(compiled(x, edge_index), module(x, edge_index.clone()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_inductor_leaves_remembered_structure_alone() -> None:
    module = gnnfx.optimize(make("sage"), "fp32", graph(40, 160))
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    inputs = graph(30, 100)
    with torch.no_grad():
        want = module(*inputs)
        for _ in range(3):
            torch.testing.assert_close(compiled(*inputs), want)
        torch.testing.assert_close(module(*inputs), want)
