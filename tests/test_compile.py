"""torch.compile of an optimized module: one graph, the same outputs, and no stale structure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import gnnfx
from tests.models import GraphClassifier, graph, make


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CASES = [
    ("gcn", "fp32"),
    ("gcn", "int8"),
    ("gat", "int8"),
    ("gatv2", "int4"),
    ("custom-sum", "int4"),
    ("hand-written", "fp32"),
]


@pytest.mark.parametrize(("name", "policy"), CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_equals_uncompiled(name: str, policy: str) -> None:
    data = None if policy == "fp32" else [graph(40, 160)]
    module = gnnfx.optimize(make(name), policy, graph(40, 160), calibration=data)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for sizes in [(30, 100), (50, 300), (64, 10), (20, 20)]:
            inputs = graph(*sizes)
            torch.testing.assert_close(compiled(*inputs), module(*inputs))
        assert counter.frame_count == 1, "one graph serves all sizes"
        x, edge_index = graph(30, 100)
        compiled(x, edge_index)
        edge_index[0] = (edge_index[0] + 1) % 30
        torch.testing.assert_close(compiled(x, edge_index), module(x, edge_index.clone()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "policy"), [("sage", "fp32"), ("custom-gated", "int8")])
def test_inductor_leaves_remembered_structure_alone(name: str, policy: str) -> None:
    module = gnnfx.optimize(make(name), policy, graph(40, 160))
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    inputs = graph(30, 100)
    with torch.no_grad():
        want = module(*inputs)
        for _ in range(3):
            torch.testing.assert_close(compiled(*inputs), want)
        torch.testing.assert_close(module(*inputs), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_number_of_graphs_that_only_the_data_tells() -> None:
    model = GraphClassifier().eval()

    def batch(nodes: int, graphs: int) -> tuple[torch.Tensor, ...]:
        return *graph(nodes, 90), torch.arange(nodes) % graphs

    module = gnnfx.optimize(model, "fp32", batch(30, 4))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for inputs in [batch(30, 4), batch(50, 7), batch(20, 1)]:
            torch.testing.assert_close(compiled(*inputs), module(*inputs))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_with_sparse_matrices_the_module_runs_as_it_is() -> None:
    x, edge_index = graph(40, 160)
    ends = edge_index.unique(dim=1)
    adjacency = torch.sparse_coo_tensor(ends, torch.ones(ends.shape[1]), (40, 40)).to_sparse_csr()
    model = make("gcn")
    module = gnnfx.optimize(model, "fp32", (x, adjacency))
    with torch.no_grad():
        got, want = torch.compile(module)(x, adjacency), model(x, adjacency)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
