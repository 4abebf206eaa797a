"""prepare and convert: trains like the model, and integers equal what was trained."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn

import gnnfx
from gnnfx import Policy, PreparedModule, Quantize, Training
from gnnfx.errors import CalibrationError, InputError, PolicyError
from tests.models import IN, NODE_MODELS, OUT, UGLY, GraphClassifier, graph, make


def fit(module: nn.Module, steps: int = 5, seed: int = 0) -> list[float]:
    """The losses of a few steps of Adam on one graph."""
    torch.manual_seed(seed)
    inputs = graph(300, 1500)
    y = torch.arange(300) % OUT
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(module.train()(*inputs), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def prepared(name: str, policy: str | Policy) -> PreparedModule:
    return gnnfx.prepare(make(name), policy, graph(40, 160))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter after one forward in train mode."""
    module.zero_grad()
    out = module.train()(*graph(90, 400))
    (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def no_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", NODE_MODELS)
def test_float_training_equals_the_models_own(name: str) -> None:
    model = no_dropout(make(name))
    module = gnnfx.prepare(model, "fp32", graph(40, 160))
    assert dict(module.named_parameters()).keys() == dict(model.named_parameters()).keys()
    want, got = gradients(model), gradients(module)
    assert got.keys() == want.keys()
    for key, value in want.items():
        # A bias in front of batch norm has gradient 0, and here what rounding leaves of it.
        scale = float(value.abs().max().clamp(min=0.1))
        torch.testing.assert_close(got[key] / scale, value / scale, rtol=0, atol=1e-4)
    with torch.no_grad():
        out, expected = prepared(name, "fp32").eval()(*graph(70, 300)), make(name)(*graph(70, 300))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "policy"),
    [(name, ("int4-dq", "int8-dq")[i % 2]) for i, name in enumerate(NODE_MODELS)]
    + [("gat", "int4-dq"), ("gcn", "int8-dq")],
)
def test_integers_equal_the_trained_simulation(name: str, policy: str) -> None:
    module = prepared(name, policy)
    losses = fit(module)
    assert losses[-1] < losses[0]
    integer = gnnfx.convert(module)
    assert "quantized_linear" in integer.ir()
    ties = 0
    for inputs in (graph(300, 1500, seed=7), *(make_graph() for make_graph in UGLY.values())):
        with torch.no_grad():
            want, got = module.eval()(*inputs), integer(*inputs)
        gap = (got - want).abs() / want.abs().max().clamp(min=1e-6)
        # One code at a rounding tie reaches the rows around it; see tests/test_simulation.py.
        ties += float((gap > 1e-5).float().mean()) > (2e-2 if len(inputs[0]) > 100 else 0.2)
        assert float(gap.max()) < 0.05
    assert ties <= 1


@pytest.mark.parametrize(
    "policy",
    ["int8-dq", "int4-dq", Policy(Quantize(4, 8, layers="all", training=Training("learned-step")))],
)
def test_scores_of_attention_are_made_of_the_codes_that_are_summed(policy: str | Policy) -> None:
    module = prepared("gat", policy)
    fit(module)
    integers = gnnfx.convert(module)
    text = integers.ir()
    assert "aten.sum" not in text
    assert "aten.linear" not in text
    assert "= linear(" not in text
    assert "param('convs.0.att_src.spread.codes.merged')" in text
    with torch.no_grad():
        want, got = module.eval()(*graph(70, 300)), integers(*graph(70, 300))
    assert float((got - want).abs().gt(1e-4 * want.abs().max()).float().mean()) < 0.02


def test_fp32_converts_to_the_same_answers() -> None:
    module = prepared("gcn-norm-jk", "fp32")
    fit(module)
    inputs = graph(70, 300)
    with torch.no_grad():
        torch.testing.assert_close(gnnfx.convert(module)(*inputs), module.eval()(*inputs))


def test_dropout_and_batch_norm_follow_the_mode() -> None:
    module = gnnfx.prepare(
        pyg.GAT(IN, 16, 2, OUT, heads=2, dropout=0.5, norm="batch"), "fp32", graph(40, 160)
    )
    inputs = graph(60, 200)
    assert not torch.equal(module(*inputs), module(*inputs))
    count = module.get_buffer("norms.0.module.num_batches_tracked")
    assert int(count) == 2
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))
    assert int(count) == 2
    module.train()
    module.get_submodule("norms").eval()
    module(*inputs)
    assert int(count) == 2


def test_what_stops_gradients_still_stops_them() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lin = pyg.GCNConv(IN, OUT), nn.Linear(IN, OUT)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index) + self.lin(x).detach()  # type: ignore[no-any-return]

    module = gnnfx.prepare(Detached(), "fp32", graph(40, 160))
    module(*graph(50, 100)).sum().backward()
    assert module.get_parameter("conv.lin.weight").grad is not None
    assert module.get_parameter("lin.weight").grad is None


def test_a_checkpoint_resumes_exactly() -> None:
    first = prepared("gin", "int4-dq")
    fit(first, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = prepared("gin", "int4-dq")
    second.load_state_dict(torch.load(file, weights_only=True))
    assert fit(first, 3, seed=5) == fit(second, 3, seed=5)
    assert torch.equal(first.eval()(*graph(50, 200)), second.eval()(*graph(50, 200)))


def test_a_copy_trains_on_its_own() -> None:
    module = prepared("gcn", "int8-dq")
    fit(module, 2)
    twin = copy.deepcopy(module)
    before = copy.deepcopy(module.state_dict())
    fit(twin, 2)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not torch.equal(twin.get_parameter("convs.0.lin.weight"), before["convs.0.lin.weight"])


def test_training_is_reproducible_with_torchs_seed() -> None:
    one, other = prepared("gat", "int4-dq"), prepared("gat", "int4-dq")
    assert fit(one) == fit(other)
    assert fit(prepared("gat", "int4-dq"), seed=1) != fit(prepared("gat", "int4-dq"), seed=2)


def test_autocast_trains() -> None:
    module = prepared("gin", "int8-dq")
    with torch.autocast("cpu", torch.bfloat16):
        out = module(*graph(60, 200))
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_the_model_is_not_modified() -> None:
    model = make("gcn").train()
    before = copy.deepcopy(model.state_dict())
    module = gnnfx.prepare(model, "int4-dq", graph(40, 160))
    fit(module, 2)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("estimator", "observer"),
    [
        ("straight-through", "minmax"),
        ("straight-through", "moving-average"),
        ("clipped", "percentile"),
        ("learned-step", "mse"),
    ],
)
def test_every_estimator_and_observer_trains_and_converts(estimator: Any, observer: Any) -> None:
    training = Training(estimator, observer, 0.99)
    policy = Policy(Quantize(4, 4, layers="all", training=training))
    module = prepared("gcn", policy)
    losses = fit(module, 15)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        want = module.eval()(*graph(200, 900))
    torch.testing.assert_close(gnnfx.convert(module)(*graph(200, 900)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 2), (4, 8)])
def test_every_width_converts(weight_bits: Any, activation_bits: Any) -> None:
    module = prepared("sage", Policy(Quantize(weight_bits, activation_bits, layers="all")))
    fit(module, 3)
    with torch.no_grad():
        want = module.eval()(*graph(200, 900))
    torch.testing.assert_close(gnnfx.convert(module)(*graph(200, 900)), want, rtol=1e-4, atol=1e-4)


def test_frozen_ranges_stay_until_they_are_opened_again() -> None:
    module = prepared("gcn", "int8-dq")
    fit(module, 2)
    scales = {name: q.scale.clone() for name, q in module.quantizers().items()}
    module.freeze_ranges()
    x, edge_index = graph(300, 1500)
    module(10 * x, edge_index)
    assert all(torch.equal(q.scale, scales[name]) for name, q in module.quantizers().items())
    module.freeze_ranges(False)
    module(10 * x, edge_index)
    assert float(module.quantizers()["x"].scale) > 5 * float(scales["x"])


def test_graphs_in_batches_are_protected_by_their_own_degrees() -> None:
    x, edge_index = graph(50, 200)
    batch = torch.arange(50) // 20
    module = gnnfx.prepare(GraphClassifier(), "int8-dq", (x, edge_index, batch))
    (rank,) = (i for i in module.origin.program.find("degree_cdf"))
    assert rank.args["batch"].name == "batch"
    module(x, edge_index, batch).sum().backward()
    with torch.no_grad():
        want = module.eval()(x, edge_index, batch)
    torch.testing.assert_close(gnnfx.convert(module)(x, edge_index, batch), want)


def test_a_changed_graph_is_noticed_in_training() -> None:
    module = prepared("gcn", "fp32").eval()
    x, edge_index = graph(40, 160)
    first = module(x, edge_index)
    edge_index[0, :80] = 3
    fresh = prepared("gcn", "fp32").eval()(x, edge_index)
    assert not torch.equal(first, fresh)
    assert torch.equal(module(x, edge_index), fresh)


def test_eval_before_training_says_what_to_do() -> None:
    module = prepared("gcn", "int8-dq")
    with pytest.raises(CalibrationError, match="train mode before eval mode"):
        module.eval()(*graph(50, 100))
    with pytest.raises(CalibrationError, match="train mode before converting"):
        gnnfx.convert(module)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match=r"result of gnnfx\.prepare, got GCN"):
        gnnfx.convert(make("gcn"))  # type: ignore[arg-type]
    module = prepared("gcn", "fp32")
    x, edge_index = graph(50, 100)
    with pytest.raises(InputError, match="holds node 50; expected 0 <= node < 50"):
        module(x, edge_index + 1 + 49 - edge_index.max())
    weighted = (x, edge_index, torch.rand(100))
    module = gnnfx.prepare(pyg.GraphConv(IN, OUT), "fp32", weighted)
    with pytest.raises(InputError, match="'edge_weight' requires a gradient"):
        module(x, edge_index, torch.rand(100, requires_grad=True))
    with pytest.raises(PolicyError, match=r"protect must be \(p_min, p_max\)"):
        Training(protect=(0.3, 0.1))
    with pytest.raises(PolicyError, match="estimator must be one of"):
        Training(estimator="round")  # type: ignore[arg-type]


def test_what_only_training_does_is_left_out_with_a_warning() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.GCNConv(IN, OUT)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.conv(x, edge_index)
            return out + torch.randn_like(out) if self.training else out

    model = Noisy()
    before = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="Noisy does something besides dropout and batch norm"):
        gnnfx.prepare(model, "int8-dq", graph(40, 160))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_a_backward_pass_needs_outlives_other_forwards() -> None:
    """Large values lie in memory that calls use again, once nothing refers to it."""
    torch.manual_seed(0)
    model = pyg.GCN(300, 300, num_layers=2, out_channels=4)
    features = [torch.randn(2000, 300) for _ in range(3)]
    edge_index = torch.randint(2000, (2, 6000))
    for policy in ("fp32", Policy(quantize=Quantize(layers="all"))):
        prepared = gnnfx.prepare(model, policy, (features[0], edge_index))
        prepared(features[0], edge_index)  # ranges, and buffers
        prepared.freeze_ranges()
        alone = []
        for x in features:
            prepared.zero_grad()
            prepared(x, edge_index).square().sum().backward()
            alone.append([p.grad.clone() for p in prepared.parameters() if p.grad is not None])
        together = [prepared(x, edge_index).square().sum() for x in features]
        for loss, want in reversed(list(zip(together, alone, strict=True))):
            prepared.zero_grad()
            loss.backward()
            got = [p.grad for p in prepared.parameters() if p.grad is not None]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [pyg.GCN, pyg.GraphSAGE, pyg.GIN])
def test_outputs_may_be_changed_in_place(kind: type[nn.Module]) -> None:
    model = kind(IN, 8, num_layers=2, out_channels=OUT)
    x, edge_index = graph(30, 90)
    prepared = gnnfx.prepare(model, "fp32", (x, edge_index)).eval()
    for module in (prepared, model.eval()):
        module(x, edge_index).mul_(2).add_(1).square().sum().backward()
    mine = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)
