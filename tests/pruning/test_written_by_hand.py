"""Models as people write them: removal equals masking, in float64 and both modes, or why not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import gnnfx
from gnnfx import Policy, Prune, Pruner, SparseTraining
from gnnfx.errors import InputError, PolicyError
from tests.models import graph

Forward = Callable[["Hand", Tensor, Tensor], Tensor]
X, EDGES = graph(30, 120)
BATCH = torch.arange(30) // 8


class Hand(nn.Module):
    """Layers by name, and a forward that uses them."""

    def __init__(self, forward: Forward, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.run(self, x, edge_index)


def gate(m: Any, x: Tensor, _: Tensor) -> Tensor:
    left, right = m.norm(m.a(x)).chunk(2, -1)
    return m.tail(left.sigmoid() * right)  # type: ignore[no-any-return]


def half(m: Any, x: Tensor, _: Tensor) -> Tensor:
    return m.tail(m.norm(m.a(x))[:, :4])  # type: ignore[no-any-return]


def norm_again(m: Any, x: Tensor, _: Tensor) -> Tensor:
    return m.out(functional.layer_norm(m.norm(m.a(x)), (8,)))  # type: ignore[no-any-return]


def mean_of_norm(m: Any, x: Tensor, _: Tensor) -> Tensor:
    h = m.norm(m.a(x))
    return h.mean(-1, keepdim=True) * m.out(h)  # type: ignore[no-any-return]


def heads_of(m: Any, x: Tensor, _: Tensor) -> Tensor:
    return m.out(m.norm(m.a(x).view(-1, 4, 8)).relu().sum(1))  # type: ignore[no-any-return]


def summed(m: Any, x: Tensor, _: Tensor) -> Tensor:
    h = m.act(m.a(x))
    return m.out(h) + h.sum(-1, keepdim=True)  # type: ignore[no-any-return]


def prompts(m: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    joined = torch.cat([m.a(x), m.prompt], 0).relu()
    return m.out(m.conv(joined, edge_index).relu())  # type: ignore[no-any-return]


def batched(m: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    return m.out(m.conv(m.a(x.view(-1, 2, 10).transpose(0, 1)), edge_index).relu())  # type: ignore[no-any-return]


def linear(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o)


def normed(forward: Forward, norm: Callable[[int], nn.Module]) -> Hand:
    return Hand(forward, a=linear(20, 8), norm=norm(8), tail=linear(4, 4), out=linear(8, 3))


MODELS: dict[str, Callable[[], Hand]] = {
    **{
        f"{norm.__name__}-{forward.__name__}": partial(normed, forward, norm)
        for norm in (nn.LayerNorm, nn.RMSNorm)
        for forward in (gate, half, norm_again, mean_of_norm)
    },
    "prompts": lambda: Hand(
        prompts,
        a=linear(20, 8),
        prompt=nn.Parameter(torch.randn(4, 8)),
        conv=pyg.SAGEConv(8, 8),
        out=linear(8, 3),
    ),
    "hardtanh": lambda: Hand(summed, a=linear(20, 8), act=nn.Hardtanh(), out=linear(8, 3)),
    "batched": lambda: Hand(batched, a=linear(10, 8), conv=pyg.SAGEConv(8, 8), out=linear(8, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_removed_equals_masked(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]().double(), (X.double(), EDGES)
    pruner = Pruner(model, Prune(0.5), inputs)
    pruner.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = pruner.remove()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for training in (False, True):
        masked = copy.deepcopy(model).train(training)
        want = masked(*inputs).detach()
        torch.testing.assert_close(small.train(training)(*inputs), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", [nn.Linear(8, 8), nn.LayerNorm(8)], ids=["linear", "layer-norm"])
def test_heads_that_a_bias_revives_stay(norm: nn.Module) -> None:
    model = Hand(heads_of, a=linear(20, 32), norm=norm, out=linear(8, 3))
    with pytest.raises(PolicyError, match="where a removed channel would not be zero"):
        gnnfx.optimize(model.eval(), Policy(prune=Prune(units="heads")), (X, EDGES))


def test_channels_that_an_activation_lifts_from_zero_stay() -> None:
    model = Hand(summed, a=linear(20, 8), act=nn.Hardtanh(0.5, 1.0), out=linear(8, 3))
    with pytest.raises(PolicyError, match="where a removed channel would not be zero"):
        gnnfx.optimize(model.eval(), Policy(prune=Prune()), (X, EDGES))


def test_channels_that_a_batch_norm_averages_stay() -> None:
    model = Hand(heads_of, a=linear(20, 32), norm=nn.BatchNorm1d(4), out=linear(8, 3))
    with pytest.raises(PolicyError, match="is averaged by a batch norm"):
        gnnfx.optimize(model.eval(), Policy(prune=Prune()), (X, EDGES))


class PooledNorm(nn.Module):
    """A norm and a pool that both count the graphs of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = pyg.SAGEConv(20, 8), pyg.GraphNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.norm(self.conv(x, edge_index), batch).relu()
        return self.out(pyg.global_add_pool(h, batch))  # type: ignore[no-any-return]


def test_sizes_that_data_decide_alike_are_one() -> None:
    torch.manual_seed(0)
    model, inputs = PooledNorm().eval(), (X, EDGES, BATCH)
    optimized = gnnfx.optimize(model, "fp32", inputs)
    for call in (inputs, (X[:9], torch.randint(9, (2, 20)), torch.arange(9) // 2)):
        torch.testing.assert_close(optimized(*call), model(*call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 0.99])
def test_global_pruning_empties_no_layer(ratio: float) -> None:
    torch.manual_seed(0)
    model = pyg.GCN(20, 16, 3, 4)
    with torch.no_grad():
        model.convs[1].lin.weight.mul_(1e-3)
    pruner = Pruner(model, Prune(ratio, "global"), (X, EDGES))
    pruner.step()
    total = sum(model.get_parameter(name).numel() for name in pruner.weights)
    left = {name: int(model.get_parameter(name).count_nonzero()) for name in pruner.weights}
    assert left["convs.1.lin.weight"] >= 1
    assert sum(left.values()) == total - int(ratio * total)


@pytest.mark.parametrize(
    "prune", [Prune(units="heads"), Prune(criterion="batch-norm"), Prune(0.01)], ids=str
)
def test_what_optimize_refuses_the_pruner_refuses(prune: Prune) -> None:
    model = pyg.GCN(20, 16, 2, 4).eval()
    with pytest.raises(PolicyError, match="would prune nothing in this model") as first:
        gnnfx.optimize(model, Policy(prune=prune), (X, EDGES))
    with pytest.raises(PolicyError, match="would prune nothing in this model") as second:
        Pruner(model, prune, (X, EDGES)).step()
    assert str(first.value) == str(second.value)


def test_weights_that_came_back_are_named_and_pruned() -> None:
    model = pyg.GCN(20, 16, 2, 4)
    before = copy.deepcopy(model.state_dict())
    pruner = Pruner(model, Prune(0.5), (X, EDGES))
    pruner.step()
    model.load_state_dict(before)
    with pytest.warns(UserWarning, match=r"convs\.0\.lin\.weight.* changed since the last step"):
        small = pruner.remove()
    assert small.get_parameter("convs.0.lin.weight").shape == (8, 20)


@pytest.mark.parametrize("method", ["structured", "global-structured", "fine-grained", "global"])
def test_nan_is_named(method: Any) -> None:
    model = pyg.GCN(20, 16, 3, 4)
    with torch.no_grad():
        model.convs[1].lin.weight[3, 2] = torch.nan
    with pytest.raises(PolicyError, match="holds NaN"):
        Pruner(model, Prune(0.5, method), (X, EDGES)).step()


def test_taylor_of_a_model_with_frozen_layers() -> None:
    torch.manual_seed(0)
    model = pyg.GraphSAGE(20, 16, 2, 4)
    model.convs[0].lin_r.requires_grad_(False)
    model(X, EDGES).square().sum().backward()
    pruner = Pruner(model, Prune(0.5, criterion="taylor"), (X, EDGES))
    pruner.step()
    assert pruner.remove().get_parameter("convs.0.lin_r.weight").shape == (8, 20)


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = pyg.SAGEConv(20, 16), pyg.SAGEConv(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.a(x, edge_index).relu()
        return self.out(h + self.b(h, edge_index).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"a.*": 0.0, "b.*": 0.9}, "'a.*' wants 0.0 of .* 'b.*' wants 0.9 of"),
        ({"b.*": 0.9, "a.*": 0.0}, "'b.*' wants 0.9 of .* 'a.*' wants 0.0 of"),
        ({"out": 0.5}, "'out' matches only what stays: out.weight is an output of the model"),
    ],
)
def test_overrides_that_cannot_be_met(overrides: dict[str, float], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Pruner(Coupled(), Prune(0.5, overrides=overrides), (X, EDGES))


@pytest.mark.parametrize("method", ["structured", "fine-grained"])
def test_an_override_names_a_layer_with_its_parts(method: Any) -> None:
    model = pyg.GIN(20, 16, 2, 4)
    pruner = Pruner(model, Prune(0.5, method, overrides={"convs.0": 0.25}), (X, EDGES))
    pruner.step()
    first = model.get_parameter("convs.0.nn.lins.0.weight")
    assert int(first.count_nonzero()) == 0.75 * first.numel()


PRODUCTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mm": lambda m, x: torch.mm(x, m.w),
    "matmul": lambda m, x: x @ m.w,
    "linear of a transposed weight": lambda m, x: functional.linear(x, m.w.t()),
    "bmm": lambda m, x: torch.bmm(x.expand(4, -1, -1), m.v).sum(0),
    "weight on the left": lambda m, x: (m.w.t() @ x.t()).t(),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_is_counted_and_pruned(name: str) -> None:
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor, _: Tensor) -> Tensor:
        return m.out(PRODUCTS[name](m, x).relu())  # type: ignore[no-any-return]

    model = Hand(
        forward,
        w=nn.Parameter(torch.empty(20, 64)),
        v=nn.Parameter(torch.empty(4, 20, 64)),
        out=linear(64, 4),
    )
    with FlopCounterMode(display=False) as counter:
        model(X, EDGES)
    pruner = Pruner(model, Prune(0.9, "fine-grained"), (X, EDGES))
    biases = 30 * 4
    assert pruner.flops().linear == counter.get_total_flops() + biases
    pruner.step()
    assert pruner.flops().linear - biases == pytest.approx(
        0.1 * counter.get_total_flops(), rel=0.02
    )


def test_relations_are_pruned() -> None:
    torch.manual_seed(0)
    model, types = pyg.RGCNConv(20, 16, 3), torch.randint(3, (120,))
    pruner = Pruner(model, Prune(0.9, "fine-grained"), (X, EDGES, types))
    assert pruner.weights == ["weight", "root"]
    pruner.step()
    assert int(model.get_parameter("weight").count_nonzero()) == 3 * 20 * 16 - int(
        0.9 * 3 * 20 * 16
    )


def weights(layer: nn.Linear) -> dict[str, nn.Parameter]:
    return {"w": layer.get_parameter("weight")}


def sparse_run(steps: int, resume: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
    """A weight after `steps` steps of sparse training, and all states."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    sparse = SparseTraining(
        weights(layer), optimizer, 0.1, end=40, every=4, growth="random", seed=1
    )
    first = 0
    if resume is not None:
        layer.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        sparse.load_state_dict(resume["sparse"])
        first = resume["steps"]
    for number in range(first, steps):
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(number))
        layer(x).square().mean().backward()
        optimizer.step()
        sparse.step()
        optimizer.zero_grad()
    state = {
        "model": copy.deepcopy(layer.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "sparse": sparse.state_dict(),
        "steps": steps,
    }
    return layer.weight.detach(), state


def test_sparse_training_goes_on_where_it_stopped() -> None:
    whole, _ = sparse_run(30)
    _, state = sparse_run(14)
    resumed, _ = sparse_run(30, state)
    assert torch.equal(whole, resumed)
    other = SparseTraining.__new__(SparseTraining)
    other.weights = {"v": nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(InputError, match="state is of the weights"):
        other.load_state_dict(state["sparse"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growth": "rigl"}, "growth must be one of gradient, random; got 'rigl'"),
        ({"distribution": "ERK"}, "distribution must be one of uniform, erk; got 'ERK'"),
        ({"every": 0}, "expected every >= 1 and end >= 1, got every=0"),
        ({"end": 0}, "expected every >= 1 and end >= 1"),
    ],
)
def test_sparse_training_names_wrong_settings(settings: dict[str, Any], message: str) -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with pytest.raises(InputError, match=message):
        SparseTraining(weights(layer), optimizer, 0.5, **{"end": 9, **settings})
    with pytest.raises(InputError, match="optimizer does not train the weights v"):
        SparseTraining({"v": nn.Parameter(torch.ones(2, 2))}, optimizer, 0.5, end=9)
