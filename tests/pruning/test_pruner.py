"""gnnfx.Pruner: masks in the user's training loop, and the smaller model in the end."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gnnfx
from gnnfx import Policy, Prune, Pruner, Quantize
from gnnfx.errors import InputError, PolicyError
from gnnfx.pruning.schedule import share_due
from tests.models import NODE_MODELS, graph, make


def train(model: nn.Module, pruner: Pruner | None, steps: int) -> list[float]:
    """Fit random classes on a random graph; the loss of each step."""
    x, edge_index = graph(30, 100)
    classes = torch.randint(5, (30,), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, edge_index), classes)
        if pruner is not None and pruner.prune.removes:
            loss = loss + 1e-4 * pruner.penalty()
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        losses.append(float(loss.detach()))
    return losses


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NODE_MODELS)
def test_train_remove_fine_tune_quantize(name: str) -> None:
    model, (x, edge_index) = make(name), graph(30, 100)
    pruner = Pruner(model, Prune(ratio=0.5, schedule="cubic", end=4, every=2), (x, edge_index))
    train(model, pruner, 6)
    small = pruner.remove()
    assert parameters(small) < parameters(model)
    assert set(small.state_dict()) <= set(model.state_dict())
    model.eval()
    # A model that caches its first graph answers for no other.
    for inputs in [(x, edge_index)] if name == "gcn-cached" else [(x, edge_index), graph(9, 40)]:
        want = model(*inputs).detach()
        torch.testing.assert_close(
            small(*inputs), want, rtol=1e-6, atol=1e-6 * float(want.abs().max())
        )
    losses = train(small, None, 30)
    assert losses[-1] < losses[0]
    optimized = gnnfx.optimize(small, "int8", (x, edge_index), calibration=[(x, edge_index)])
    assert any("int8" in op for layer in optimized.report.layers for op in layer.runs_as)
    want, got = small(x, edge_index).detach(), optimized(x, edge_index)
    assert float((got - want).abs().max()) < 0.1 * float(want.abs().max())


def fit(model: nn.Module, steps: int, after_step: Callable[[], None] = lambda: None) -> list[float]:
    """Train on a random graph with batch statistics; the loss of each step."""
    x, edge_index = graph(30, 100)
    classes = torch.randint(5, (30,), generator=torch.Generator().manual_seed(0))
    # Biases before a batch norm have gradients of noise, which Adam would make as large as others.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(x, edge_index), classes)
        loss.backward()
        optimizer.step()
        after_step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["gcn-norm-jk", "gin", "gat"])
def test_what_was_removed_trains_as_the_masked_model(name: str) -> None:
    model, inputs = make(name), graph(30, 100)
    pruner = Pruner(model, Prune(ratio=0.5), inputs)
    pruner.step()
    small = pruner.remove()
    want = fit(model, 4, pruner.step)
    assert fit(small, 4) == pytest.approx(want, rel=1e-5)
    again = pruner.remove().state_dict()
    for key, value in small.state_dict().items():
        torch.testing.assert_close(value, again[key], rtol=1e-4, atol=1e-5, msg=key)
    torch.testing.assert_close(small.eval()(*inputs), model.eval()(*inputs), rtol=1e-4, atol=1e-5)


def test_what_was_removed_drops_out_in_training_only() -> None:
    model, inputs = make("gcn"), graph(30, 100)
    small = gnnfx.prepare(Pruner(model, Prune(), inputs).remove(), "fp32", inputs)
    torch.manual_seed(0)
    first, second = small.train()(*inputs), small(*inputs)
    assert not torch.equal(first, second)
    assert torch.equal(small.eval()(*inputs), small(*inputs))


def test_what_was_removed_is_prepared_for_rounding() -> None:
    model, inputs = make("gcn-norm-jk"), graph(30, 100)
    pruner = Pruner(model, Prune(ratio=0.5), inputs)
    pruner.step()
    prepared = gnnfx.prepare(pruner.remove(), "int8-dq", inputs)
    fit(prepared, 2)
    integer = gnnfx.convert(prepared)
    assert tuple(prepared.get_parameter("convs.1.lin.weight").shape) == (8, 8)
    assert any("int8" in op for layer in integer.report.layers for op in layer.runs_as)
    with pytest.raises(InputError, match="prepared with policy 'int8-dq' and rounds"):
        gnnfx.optimize(prepared, "fp32", inputs)


@pytest.mark.parametrize("units", ["channels", "heads"])
@pytest.mark.parametrize("name", ["gat", "gatv2"])
def test_heads_and_channels_of_attention(name: str, units: str) -> None:
    model, (x, edge_index) = make(name), graph(30, 100)
    pruner = Pruner(model, Prune(units=units), (x, edge_index))  # type: ignore[arg-type]
    pruner.step()
    small = pruner.remove()
    heads = NODE_MODELS[name]().convs[0].heads  # type: ignore[index,union-attr]
    attention = "convs.0.att_src" if name == "gat" else "convs.0.att"
    expected = (1, heads // 2, 16 // heads) if units == "heads" else (1, heads, 8 // heads)
    assert tuple(small.get_parameter(attention).shape) == expected
    torch.testing.assert_close(small(x, edge_index), model(x, edge_index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["fine-grained", "global"])
@pytest.mark.parametrize("criterion", ["l1", "taylor", "random"])
def test_single_weights_stay_zero_in_training(method: str, criterion: str) -> None:
    model, inputs = make("gcn"), graph(30, 100)
    prune = Prune(ratio=0.75, method=method, criterion=criterion)  # type: ignore[arg-type]
    pruner = Pruner(model, prune, inputs)
    train(model, pruner, 3)
    weights = [model.get_parameter(f"convs.{i}.lin.weight") for i in (0, 1)]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros == sum(w.numel() for w in weights) * 3 // 4
    assert set(pruner.masks) == {"convs.0.lin.weight", "convs.1.lin.weight"}


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "batch-norm", "aggregation", "random"])
def test_every_criterion_removes_half(criterion: str) -> None:
    model, inputs = make("gcn-norm-jk"), graph(30, 100)
    pruner = Pruner(model, Prune(criterion=criterion), inputs)  # type: ignore[arg-type]
    train(model, pruner, 1)
    assert tuple(pruner.remove().get_parameter("convs.1.lin.weight").shape) == (8, 8)


def test_aggregation_prefers_what_hubs_pass_on() -> None:
    """Of two equal channels, the one that is large at a node with many readers stays."""
    model = NODE_MODELS["sage"]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
        weight = model.get_parameter("convs.0.lin_r.weight")
        weight.zero_()
        weight[0::2, 0] = 1.0  # input 0 is set at the hub only
        weight[1::2, 1] = 1.0  # input 1 is set at a leaf only
    x = torch.zeros(6, 20)
    x[0, 0], x[1, 1] = 1.0, 1.0
    edge_index = torch.tensor([[0, 0, 0, 0, 1], [2, 3, 4, 5, 0]])
    pruner = Pruner(model, Prune(criterion="aggregation"), (x, edge_index))
    pruner.step()
    stays = pruner.masks["convs.0.lin_r.weight"].any(1)
    assert stays.tolist() == [True, False] * 8


class Nested(nn.Module):
    """Arguments in a dict, results in a dict, an argument that is no tensor, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 8), nn.Linear(8, 8)
        self.third = nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.last = nn.Linear(8, 5)

    def forward(
        self, given: dict[str, torch.Tensor], scale: torch.Tensor | None, edge_index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        h = self.third(self.second(self.first(given["x"]).relu()).relu())
        mean = torch.zeros(h.shape).index_add(0, edge_index[1], h[edge_index[0]])
        return {"out": self.last(mean), "own": self.last(h)}


def test_nested_arguments_and_tied_weights_survive() -> None:
    torch.manual_seed(0)
    model, (x, edge_index) = Nested().eval(), graph(30, 100)
    pruner = Pruner(model, Prune(), ({"x": x}, None, edge_index))
    pruner.step()
    small = pruner.remove()
    parameters = dict(small.named_parameters(remove_duplicate=False))
    assert tuple(parameters["third.weight"].shape) == (4, 4)
    assert parameters["second.weight"] is parameters["third.weight"]
    want, got = model({"x": x}, None, edge_index), small({"x": x}, None, edge_index)
    assert set(got) == {"out", "own"}
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-5, atol=1e-5)
    copy.deepcopy(small)


def test_the_penalty_shrinks_whole_channels() -> None:
    model, inputs = make("gcn"), graph(30, 100)
    pruner = Pruner(model, Prune(), inputs)
    before = float(pruner.penalty().detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        pruner.penalty().backward()
        optimizer.step()
    assert float(pruner.penalty().detach()) < before


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("one-shot", [None, None, None, None, None, None, 1.0, None]),
        ("iterative", [None, None, 1 / 3, None, 2 / 3, None, 1.0, None]),
        ("cubic", [None, None, 0.0, None, 7 / 8, None, 1.0, None]),
    ],
)
def test_schedules(schedule: str, shares: list[float | None]) -> None:
    prune = Prune(schedule=schedule, begin=2, end=6, every=2)  # type: ignore[arg-type]
    assert [share_due(prune, step) for step in range(8)] == shares


def pruned_run(steps: int, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
    """A weight after so many steps, from the start or from `state`, and the state then."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(40, 8)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    pruner = Pruner(layer, Prune(0.6, "fine-grained", schedule="cubic", end=24, every=5), (x,))
    if state is not None:
        layer.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pruner.load_state_dict(state["pruner"])
    for _ in range(0 if state is None else state["steps"], steps):
        optimizer.zero_grad()
        (layer(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
        pruner.step()
    states = {"model": layer, "optimizer": optimizer, "pruner": pruner}
    saved = {name: copy.deepcopy(each.state_dict()) for name, each in states.items()}  # type: ignore[attr-defined]
    return layer.weight.detach(), {**saved, "steps": steps}


def test_pruning_goes_on_where_it_stopped() -> None:
    whole, _ = pruned_run(30)
    _, state = pruned_run(12)
    resumed, _ = pruned_run(30, state)
    assert int((whole == 0).sum()) == 38  # 0.6 of 64
    assert torch.equal(whole, resumed)
    other = Pruner(nn.Linear(8, 5), Prune(method="fine-grained"), (torch.randn(4, 8),))
    with pytest.raises(InputError, match=r"state masks the weight 'weight' \(8, 8\).*has \(5, 8\)"):
        other.load_state_dict(state["pruner"])


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_what_cannot_be_pickled_says_what_can(copied: Callable[[Any], object]) -> None:
    inputs = graph(30, 100)
    with pytest.raises(InputError, match="a Pruner cannot be copied or pickled"):
        copied(Pruner(make("gcn"), Prune(), inputs))
    with pytest.raises(InputError, match="a prepared module cannot be pickled"):
        pickle.dumps(gnnfx.prepare(make("gcn"), "int8", inputs))


def test_the_least_of_all_layers_go_but_never_all_of_one() -> None:
    model, inputs = make("gcn-norm-jk"), graph(30, 100)
    with torch.no_grad():
        model.get_parameter("convs.0.lin.weight")[:12] *= 1e-3
        model.get_parameter("norms.0.module.weight")[:12] *= 1e-3
        model.get_parameter("convs.1.lin.weight")[:, :12] *= 1e-3
    pruner = Pruner(model, Prune(0.25, method="global-structured"), inputs)
    pruner.step()
    small = pruner.remove()
    assert [small.get_parameter(f"convs.{i}.lin.weight").shape[0] for i in range(3)] == [4, 16, 16]
    pruner = Pruner(model, Prune(0.95, "global-structured", overrides={"convs.1": 0.5}), inputs)
    pruner.step()
    rows = [pruner.remove().get_parameter(f"convs.{i}.lin.weight").shape[0] for i in range(3)]
    assert rows == [1, 8, 1]


def test_overrides_apply_by_layer() -> None:
    model, inputs = make("gcn-norm-jk"), graph(30, 100)
    prune = Prune(ratio=0.5, overrides={"convs.0*": 0.25, "convs.1.lin.weight": 0.0})
    pruner = Pruner(model, prune, inputs)
    pruner.step()
    small = pruner.remove()
    rows = [small.get_parameter(f"convs.{i}.lin.weight").shape[0] for i in range(3)]
    assert rows == [12, 16, 8]


@pytest.mark.parametrize("method", ["structured", "global"])
def test_an_override_that_matches_nothing_is_an_error(method: str) -> None:
    prune = Prune(method=method, overrides={"layers.*": 0.1})  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"'layers\.\*' matches none of \["):
        Pruner(make("gcn"), prune, graph(30, 100))


def test_taylor_without_gradients_is_an_error() -> None:
    pruner = Pruner(make("gcn"), Prune(criterion="taylor"), graph(30, 100))
    with pytest.raises(PolicyError, match=r"call loss\.backward\(\) before pruning"):
        pruner.step()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 1.0}, r"ratio must lie in \[0, 1\), got 1.0"),
        ({"method": "dense"}, "method must be one of"),
        ({"overrides": {"a": -1}}, r"a must lie in \[0, 1\), got -1"),
        ({"criterion": "batch-norm", "method": "global"}, "'batch-norm' scores channels"),
        ({"begin": 3, "end": 2}, "0 <= begin <= end"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Prune(**fields)  # type: ignore[arg-type]


def test_optimize_prunes_and_quantizes_and_leaves_the_model_alone() -> None:
    model, inputs = make("gcn-norm-jk"), graph(30, 100)
    state = copy.deepcopy(model.state_dict())
    policy = Policy(prune=Prune(ratio=0.5), quantize=Quantize())
    optimized = gnnfx.optimize(model, policy, inputs, calibration=[inputs])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    remarks = [text for layer in optimized.report.layers for text in layer.done]
    assert "8 of 16 channels removed" in remarks
    assert optimized.report.bytes_after < optimized.report.bytes_before / 2


def test_nothing_to_prune_is_an_error() -> None:
    with pytest.raises(PolicyError, match="would prune nothing in this model: it has no heads"):
        gnnfx.optimize(make("gcn"), Policy(prune=Prune(units="heads")), graph(30, 100))


def test_taylor_through_optimize_reads_the_models_gradients() -> None:
    model, inputs = make("gcn"), graph(30, 100)
    model(*inputs).square().sum().backward()
    policy = Policy(prune=Prune(criterion="taylor"))
    assert "f32[N, 8]" in gnnfx.optimize(model, policy, inputs).ir()
