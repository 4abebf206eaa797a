"""optimize: same answers on every graph, integer code for code, and nothing done in silence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GraphConv, SAGEConv, global_mean_pool

import gnnfx
from gnnfx.ir.text import dump, parse
from gnnfx.ir.verify import verify
from tests.models import IN, NODE_MODELS, OUT, UGLY, GraphClassifier, Stack, SumConv, graph, make


def relative_gap(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value."""
    if want.numel() == 0:
        return 0.0
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-6))


@pytest.fixture(scope="module")
def optimized() -> dict[tuple[str, str], gnnfx.OptimizedModule]:
    """Each model under each policy, made once."""
    return {}


def get(
    optimized: dict[tuple[str, str], gnnfx.OptimizedModule], name: str, policy: str
) -> gnnfx.OptimizedModule:
    if (name, policy) not in optimized:
        example = graph(40, 160)
        data = None if policy == "fp32" else [graph(300, 1500, seed=s) for s in range(3)]
        optimized[name, policy] = gnnfx.optimize(make(name), policy, example, calibration=data)
    return optimized[name, policy]


@pytest.mark.parametrize("ugly", UGLY)
@pytest.mark.parametrize("name", NODE_MODELS)
def test_fp32_equals_eager(optimized: Any, name: str, ugly: str) -> None:
    inputs = UGLY[ugly]()
    with torch.no_grad():
        want = make(name)(*inputs)
    assert relative_gap(get(optimized, name, "fp32")(*inputs), want) < 1e-5


@pytest.mark.parametrize("policy", ["int8", "int4"])
@pytest.mark.parametrize("name", NODE_MODELS)
def test_integers_are_close_and_survive_ugly_graphs(optimized: Any, name: str, policy: str) -> None:
    module = get(optimized, name, policy)
    inputs = graph(300, 1500, seed=9)
    with torch.no_grad():
        want = make(name)(*inputs)
    error = float((module(*inputs) - want).pow(2).mean().sqrt() / want.std())
    assert error < (0.05 if policy == "int8" else 0.5)
    for make_graph in UGLY.values():
        assert module(*make_graph()).isfinite().all()


@pytest.mark.parametrize("name", NODE_MODELS)
def test_ir_text_round_trips(optimized: Any, name: str) -> None:
    for policy in ("fp32", "int8"):
        text = get(optimized, name, policy).ir()
        program = parse(text)
        verify(program)
        assert dump(program) == text


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 200), st.integers(0, 10_000))
def test_fp32_equals_eager_on_generated_graphs(nodes: int, count: int, seed: int) -> None:
    model, module = _GENERATED
    inputs = graph(nodes, count, seed)
    with torch.no_grad():
        want = model(*inputs)
    assert relative_gap(module(*inputs), want) < 1e-5


_MODEL = make("gat")
_GENERATED = (_MODEL, gnnfx.optimize(_MODEL, "fp32"))


@pytest.mark.parametrize("name", ["gcn", "sage", "gin", "gat", "gatv2"])
def test_examples_can_be_made_from_the_signature(name: str) -> None:
    model = make(name)
    inputs = graph(33, 90)
    with torch.no_grad():
        want = model(*inputs)
    assert relative_gap(gnnfx.optimize(model, "fp32")(*inputs), want) < 1e-5


def test_the_model_is_not_modified() -> None:
    model = make("gcn-cached").train()
    before = copy.deepcopy(model.state_dict())
    gnnfx.optimize(model, "int8", graph(40, 160), calibration=[graph(40, 160)])
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.get_submodule("convs.0")._cached_edge_index is None


def test_edge_weights_and_keyword_arguments() -> None:
    model = make("gcn")
    x, edge_index = graph(30, 100)
    weight = torch.rand(100)
    for policy in ("fp32", "int8"):
        module = gnnfx.optimize(
            model, policy, (x, edge_index), example_kwargs={"edge_weight": weight}
        )
        with torch.no_grad():
            want = model(x, edge_index, edge_weight=weight)
        gap = relative_gap(module(x, edge_index, edge_weight=weight), want)
        assert gap < (1e-5 if policy == "fp32" else 0.1)
        assert torch.equal(module(x, edge_index, weight), module(x, edge_index, edge_weight=weight))


@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_graph_classification_with_pooling(policy: str) -> None:
    torch.manual_seed(0)
    model = GraphClassifier().eval()
    x, edge_index = graph(60, 200)
    batch = torch.randint(5, (60,)).sort().values
    inputs = (x, edge_index, batch)
    data = None if policy == "fp32" else [inputs]
    module = gnnfx.optimize(model, policy, inputs, calibration=data)
    with torch.no_grad():
        want = model(*inputs)
    assert relative_gap(module(*inputs), want) < (1e-5 if policy == "fp32" else 0.1)
    single = (*graph(4, 6), torch.zeros(4, dtype=torch.int64))
    with torch.no_grad():
        assert module(*single).shape == model(*single).shape == (1, OUT)


def test_a_custom_layer_is_optimized_as_well_as_gcn_conv(optimized: Any) -> None:
    custom = get(optimized, "custom-sum", "int8").ir()
    stock = get(optimized, "gcn", "int8").ir()
    for op in ("quantized_aggregate", "quantized_linear"):
        assert custom.count(f"= {op}(") == stock.count(f"= {op}(") > 0
    assert " scatter(" not in custom.replace("= scatter(ones", "")


def test_hubs_do_not_overflow() -> None:
    torch.manual_seed(0)
    model = GraphConv(IN, OUT, aggr="add").eval()
    hub = 100_000
    x = torch.full((hub + 1, IN), 3.0)
    edge_index = torch.stack([torch.arange(1, hub + 1), torch.zeros(hub, dtype=torch.int64)])
    module = gnnfx.optimize(model, "int8", (x, edge_index), calibration=[(x, edge_index)])
    with torch.no_grad():
        want = model(x, edge_index)
    assert want.abs().max() > 10_000
    assert relative_gap(module(x, edge_index), want) < 0.01


def test_report_names_every_layer_and_what_was_left_alone() -> None:
    model = make("sage")
    module = gnnfx.optimize(model, "int8", graph(40, 160), calibration=[graph(40, 160)])
    report = module.report
    assert report.bytes_after < report.bytes_before
    assert report.bytes_before == sum(p.numel() * 4 for p in model.parameters())
    layers = {layer.module: layer for layer in report.layers}
    assert "quantized_linear int8" in layers["convs.1.lin_r"].runs_as
    assert "linear float32" in layers["convs.0.lin_l"].runs_as
    assert any("left in float32" in text for text in layers["convs.0.lin_l"].left)
    assert "convs.0.lin_l" in str(report)
    assert report.to_dict()["policy"] == "int8"


def test_state_dict_uses_the_models_names_and_loads_back() -> None:
    model = make("sage")
    module = gnnfx.optimize(model, "fp32", graph(40, 160))
    state = module.state_dict()
    assert set(state) == set(model.state_dict())
    other = gnnfx.optimize(make("sage"), "fp32", graph(40, 160))
    with torch.no_grad():
        for value in state.values():
            value.mul_(2)
    other.load_state_dict(state)
    inputs = graph(20, 50)
    assert torch.equal(other(*inputs), module(*inputs))


def test_a_changed_weight_is_used() -> None:
    module = gnnfx.optimize(make("gcn"), "int8", graph(40, 160), calibration=[graph(40, 160)])
    inputs = graph(20, 50)
    before = module(*inputs)
    codes = module.state_dict()["convs.1.lin.weight.codes"]
    with torch.no_grad():
        codes.neg_()
    assert not torch.allclose(module(*inputs), before)


def test_copies_are_independent() -> None:
    module = gnnfx.optimize(Stack(SumConv).eval(), "fp32", graph(40, 160))
    twin = copy.deepcopy(module)
    inputs = graph(20, 50)
    assert torch.equal(twin(*inputs), module(*inputs))
    with torch.no_grad():
        next(iter(twin.state_dict().values())).zero_()
    assert not torch.equal(twin(*inputs), module(*inputs))


class Branch(torch.nn.Module):
    """Control flow on the values of a tensor."""

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool((x[edge_index[0]] > 0).all()) else x - 1


def test_both_branches_of_a_model_that_looks_at_its_data() -> None:
    x, edge_index = torch.rand(6, 3) + 1, torch.randint(6, (2, 9))
    opt = gnnfx.optimize(Branch(), "fp32", (x, edge_index))
    assert torch.equal(opt(x, edge_index), x + 1)
    assert torch.equal(opt(-x, edge_index), -x - 1)


@pytest.mark.parametrize("layers", ["faster", "all"])
def test_nodes_are_pooled_in_floats(layers: str) -> None:
    """Pooling reads each row once, which takes no longer than making codes of it."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SAGEConv(32, 64)

        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            pooled: Tensor = global_mean_pool(self.conv(x, edge_index).relu(), batch)
            return pooled

    torch.manual_seed(0)
    x, edge_index = torch.randn(40, 32), torch.randint(40, (2, 120))
    batch = torch.arange(4).repeat_interleave(10)
    inputs = (x, edge_index, batch)
    policy = gnnfx.Policy(quantize=gnnfx.Quantize(layers=layers))  # type: ignore[arg-type]
    model = Pooled().eval()
    optimized = gnnfx.optimize(model, policy, inputs, calibration=[inputs])
    pooling = optimized.ir().splitlines()[-2]
    assert ("quantized_aggregate(" in pooling) == (layers == "all"), optimized.ir()
    assert relative_gap(optimized(*inputs), model(*inputs).detach()) < 0.05
