"""torch.compile(model, backend="gnnfx"): equal to eager, one program a size, no stale weight."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import gnnfx
import gnnfx.dynamo
from gnnfx.errors import InputError
from tests.models import IN, UGLY, GraphClassifier, graph, make, star

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
# Self-loops are taken out by a mask: with this, Dynamo does not end a graph there.
WHOLE = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}


class Said(logging.Handler):
    """What the backend said: programs it made, and warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = self.warnings if record.levelno >= logging.WARNING else self.programs
        said.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[Said]:
    torch._dynamo.reset()
    counters.clear()
    gnnfx.dynamo._say_training.cache_clear()
    handler, logger = Said(), logging.getLogger("gnnfx.dynamo")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate
    torch._dynamo.reset()


class Small(nn.Module):
    """Two linear layers around a sum over edges, with a batch norm that folds into the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(IN, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)
        self.norm.get_buffer("running_var").uniform_(0.5, 1.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.zeros_like(h).index_add_(0, edge_index[1], h[edge_index[0]])
        return self.second(self.norm(h.relu()))  # type: ignore[no-any-return]


def compiled(model: nn.Module, policy: Any = "fp32", **kwargs: Any) -> Callable[..., Tensor]:
    kwargs = {"dynamic": True, **kwargs}
    return torch.compile(model, backend="gnnfx", options={"policy": policy}, **kwargs)


def gap(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-6))


@pytest.mark.parametrize("name", ["gcn", "gat", "hand-written"])
def test_equal_to_eager_in_one_program_for_all_sizes(name: str, said: Said) -> None:
    model = make(name)
    fast = compiled(model, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(WHOLE):
        for inputs in [graph(30, 100), graph(50, 300), graph(20, 20), star(40)]:
            assert gap(fast(*inputs), model(*inputs)) < 1e-5
    assert len(said.programs) == 1
    assert said.warnings == []


def test_ugly_graphs(said: Said) -> None:
    model = Small().eval()
    fast = compiled(model)
    with torch.no_grad():
        for make_graph in UGLY.values():
            inputs = make_graph()
            assert gap(fast(*inputs), model(*inputs)) < 1e-5
    assert len(said.programs) <= 4, "but for sizes 0 and 1, one program serves all"
    assert said.warnings == []


def test_sizes_that_are_not_dynamic(said: Said) -> None:
    model = Small().eval()
    fast = compiled(model, "int8", dynamic=False)
    with torch.no_grad():
        for inputs in [graph(30, 100), graph(30, 100, seed=1), graph(50, 300)]:
            assert gap(fast(*inputs), model(*inputs)) < 0.1
        assert len(said.programs) == 2
        assert said.warnings == []
        x, edge_index = graph(30, 100)
        with pytest.raises(InputError, match="holds node 31; expected 0 <= node < 30"):
            fast(x, edge_index.clamp(max=29) + 2)


def test_marked_dimensions_are_dynamic(said: Said) -> None:
    model = Small().eval()
    fast = compiled(model, dynamic=False)
    with torch.no_grad():
        for sizes in [(30, 100), (50, 300), (20, 90)]:
            x, edge_index = graph(*sizes)
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(edge_index, 1)
            assert gap(fast(x, edge_index), model(x, edge_index)) < 1e-5
    assert len(said.programs) == 1


@pytest.mark.parametrize(("policy", "bound"), [("int8", 0.1), ("int4", 0.3)])
def test_integers_with_the_ranges_of_each_call(policy: str, bound: float, said: Said) -> None:
    model = Small().eval()
    fast = compiled(model, policy)
    reference = gnnfx.optimize(model, policy, graph(30, 100))
    with torch.no_grad():
        for inputs in [graph(30, 100), graph(60, 300)]:
            assert gap(fast(*inputs), model(*inputs)) < bound
            assert torch.equal(fast(*inputs), reference(*inputs))
    assert "quantized_linear" in said.programs[0]
    assert len(said.programs) == 1


class Broken(nn.Module):
    """Two layers with something between them that Dynamo cannot capture."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Small().eval(), nn.Linear(5, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x, edge_index)
        torch._dynamo.graph_break()
        return self.second(h).relu()  # type: ignore[no-any-return]


@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_graph_breaks_give_several_programs(policy: str, said: Said) -> None:
    model = Broken().eval()
    fast = compiled(model, policy)
    with torch.no_grad():
        for inputs in [graph(30, 100), graph(60, 300)]:
            assert gap(fast(*inputs), model(*inputs)) < (1e-5 if policy == "fp32" else 0.1)
    assert len(said.programs) == 2
    assert said.warnings == []


def test_gcn_with_graph_breaks_around_its_mask(said: Said) -> None:
    model = make("gcn")
    fast = compiled(model)
    with torch.no_grad():
        made = []
        for inputs in [graph(30, 100), graph(60, 300), graph(20, 20)]:
            assert gap(fast(*inputs), model(*inputs)) < 1e-5
            made.append(len(said.programs))
    assert made[0] > 1
    assert made[0] == made[2], "graphs of other sizes need no other programs"
    assert said.warnings == []


def test_a_batch_of_graphs(said: Said) -> None:
    torch.manual_seed(0)
    model = GraphClassifier().eval()
    fast = compiled(model)
    with torch.no_grad():
        for nodes in (30, 50):
            inputs = (*graph(nodes, 120), torch.randint(4, (nodes,)).sort().values)
            assert gap(fast(*inputs), model(*inputs)) < 1e-5
    assert said.warnings == []


def _step(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.1 * torch.ones_like(p))


def _data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.mul_(0.5)


def _numpy(model: nn.Module) -> None:
    for p in model.parameters():
        p.detach().numpy()[...] *= 0.5


def _load(model: nn.Module) -> None:
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()})


def _replace(model: nn.Module) -> None:
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                setattr(module, name, nn.Parameter(p.detach() * 0.5))


def _buffers(model: nn.Module) -> None:
    for b in model.buffers():
        b.mul_(2)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "step": _step,
    "data": _data,
    "numpy": _numpy,
    "load_state_dict": _load,
    "replace": _replace,
    "buffers": _buffers,
}


@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_changed_weights_are_used(policy: str, said: Said) -> None:
    model = Small().eval()
    fast = compiled(model, policy)
    inputs = graph(30, 100)
    with torch.no_grad():
        last = fast(*inputs)
        for change in CHANGES.values():
            change(model)
            got = fast(*inputs)
            assert not torch.equal(got, last)
            assert gap(got, model(*inputs)) < (1e-5 if policy == "fp32" else 0.1)
            last = got
    assert said.warnings == []


def test_weights_that_nothing_was_folded_from_need_no_new_program(said: Said) -> None:
    model = make("custom-gated")
    fast = compiled(model)
    inputs = graph(30, 100)
    with torch.no_grad():
        for change in CHANGES.values():
            assert gap(fast(*inputs), model(*inputs)) < 1e-5
            change(model)
    assert len(said.programs) == 1


def test_weights_that_alternate_are_both_remembered(said: Said) -> None:
    model, other = Small().eval(), Small().eval()
    _step(other)
    states = [copy.deepcopy(m.state_dict()) for m in (model, other)]
    fast = compiled(model)
    inputs = graph(30, 100)
    with torch.no_grad():
        for turn in range(6):
            model.load_state_dict(states[turn % 2])
            assert gap(fast(*inputs), model(*inputs)) < 1e-5
    assert len(said.programs) == 2


def test_training_has_the_gradients_of_eager_and_says_so_once(said: Said) -> None:
    model = Small()
    twin = copy.deepcopy(model)
    fast = compiled(model)
    inputs = graph(30, 100)
    for _ in range(2):
        for module, call in ((model, fast), (twin, twin)):
            module.zero_grad()
            call(*inputs).square().mean().backward()
            torch.optim.SGD(module.parameters(), lr=0.1).step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))
    assert said.programs == []
    assert len(said.warnings) == 1
    assert "needs gradients" in said.warnings[0]
    model.eval(), twin.eval()
    with torch.no_grad():
        assert gap(fast(*inputs), twin(*inputs)) < 1e-5
    assert len(said.programs) == 1


def test_gradients_turned_on_inside(said: Said) -> None:
    lin = nn.Linear(IN, 1)

    def sensitivity(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return lin(x.detach().requires_grad_()).sigmoid()  # type: ignore[no-any-return]

    fast = torch.compile(sensitivity, backend="gnnfx")
    with torch.no_grad():
        assert fast(torch.ones(4, IN)).requires_grad


def test_batch_norm_in_train_mode_counts_without_gradients(said: Said) -> None:
    model = Small()
    twin = copy.deepcopy(model)
    fast = compiled(model)
    with torch.no_grad():
        for sizes in [(30, 100), (50, 200), (40, 100)]:
            assert gap(fast(*graph(*sizes)), twin(*graph(*sizes))) < 1e-5
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))
    assert len(said.programs) == 1
    assert said.warnings == []


class EdgeNoise(nn.Module):
    """Weights of edges that are drawn anew in each call."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        weight = torch.rand(edge_index.shape[1], 1)
        return torch.zeros_like(x).index_add_(0, edge_index[1], weight * x[edge_index[0]])


def test_random_draws_are_not_remembered_with_the_graph(said: Said) -> None:
    fast = compiled(EdgeNoise())
    inputs = graph(30, 100)
    with torch.no_grad():
        first = fast(*inputs)
        assert not torch.equal(fast(*inputs), first)
        torch.manual_seed(0)
        want = EdgeNoise()(*inputs)
        torch.manual_seed(0)
        assert gap(fast(*inputs), want) < 1e-5
    assert said.warnings == []


def test_an_edited_graph_is_noticed(said: Said) -> None:
    model = Small().eval()
    fast = compiled(model)
    x, edge_index = graph(30, 100)
    with torch.no_grad():
        fast(x, edge_index)
        edge_index[0] = (edge_index[0] + 1) % 30
        assert gap(fast(x, edge_index), model(x, edge_index)) < 1e-5


def test_inputs_that_are_written_to(said: Said) -> None:
    def shift(x: Tensor, edge_index: Tensor) -> Tensor:
        x.add_(1)
        return torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]])

    (x, edge_index), (y, _) = graph(30, 100), graph(30, 100)
    with torch.no_grad():
        got = torch.compile(shift, backend="gnnfx", dynamic=True)(x, edge_index)
        assert gap(got, shift(y, edge_index)) < 1e-5
    assert torch.equal(x, y)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-option": ({"polcy": "int8"}, r"must be among \['policy'\], got \['polcy'\]"),
    "unknown-policy": ({"policy": "int7"}, "policy must be one of .* got 'int7'"),
    "prunes": ({"policy": gnnfx.Policy(prune=gnnfx.Prune())}, "expected one without"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_wrong_options(options: dict[str, Any], message: str, said: Said) -> None:
    fast = torch.compile(Small().eval(), backend="gnnfx", options=options)
    with torch.no_grad(), pytest.raises(Exception, match=message):
        fast(*graph(30, 100))


def test_what_the_compiler_does_not_know_runs_as_it_is(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise ValueError("an op of tomorrow")

    monkeypatch.setattr("gnnfx.compiled_graph.program_of", fails)
    model = Small().eval()
    with torch.no_grad():
        assert torch.equal(compiled(model)(*graph(30, 100)), model(*graph(30, 100)))
    assert said.warnings == ["a graph runs as it is: ValueError: an op of tomorrow"]


SCRIPT = """
import sys, torch
model = torch.nn.Linear(4, 3)
with torch.no_grad():
    out = torch.compile(model, backend="gnnfx")(torch.ones(2, 4))
    assert torch.allclose(out, model(torch.ones(2, 4)))
assert "gnnfx.dynamo" in sys.modules
"""


def test_the_entry_point_needs_no_import(tmp_path: Any) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
