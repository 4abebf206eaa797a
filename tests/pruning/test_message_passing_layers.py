"""Whole message-passing layers: those that something leads around go, the others say why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import gnnfx
from gnnfx import Policy, Prune, Pruner
from gnnfx.errors import PolicyError
from tests.models import IN, graph

WIDTH = 8


class Residual(nn.Module):
    """x + act(norm(conv(x))) three times, between linear layers."""

    def __init__(self, conv: Callable[[], nn.Module], act: Callable[[], nn.Module] = nn.ReLU):
        super().__init__()
        self.first, self.last = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, 3)
        self.convs = nn.ModuleList(conv() for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(3))
        self.act = act()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + self.act(norm(conv(x, edge_index)))
        return self.last(x)  # type: ignore[no-any-return]


class Deep(nn.Module):
    """PyG's pre-activation blocks (DeeperGCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, 3)
        self.convs = nn.ModuleList(
            pyg.DeepGCNLayer(pyg.GENConv(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), dropout=0.1)
            for _ in range(3)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.convs:
            x = layer(x, edge_index)
        return self.last(x)  # type: ignore[no-any-return]


CONVS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: pyg.GCNConv(WIDTH, WIDTH),
    "sage": lambda: pyg.SAGEConv(WIDTH, WIDTH),
    "gin": lambda: pyg.GINConv(pyg.MLP([WIDTH, 6, WIDTH])),
    "gat": lambda: pyg.GATConv(WIDTH, WIDTH // 2, heads=2),
    "gatv2": lambda: pyg.GATv2Conv(WIDTH, WIDTH, heads=3, concat=False, residual=True),
    "transformer": lambda: pyg.TransformerConv(WIDTH, WIDTH // 2, heads=2, beta=True),
    "edge": lambda: pyg.EdgeConv(nn.Linear(2 * WIDTH, WIDTH)),
    "pna": lambda: pyg.PNAConv(WIDTH, WIDTH, ["mean", "max"], ["identity"], torch.ones(4)),
}


def shared(*names: str) -> nn.Module:
    """A residual model whose `names` are the same module in every layer."""
    model = Residual(CONVS["gcn"])
    for name in names:
        setattr(model, name, nn.ModuleList([model.get_submodule(f"{name}.0")] * 3))
    return model


def drawn(model: nn.Module) -> nn.Module:
    """`model` with running statistics as training leaves them."""
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point() and "running" in key:
            buffer.uniform_(0.5, 1.5) if "var" in key else buffer.normal_()
    return model


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("name", [*CONVS, "deep"])
def test_removed_equals_masked(name: str) -> None:
    torch.manual_seed(0)
    model = drawn(Deep() if name == "deep" else Residual(CONVS[name]))
    inputs = graph(30, 100)
    pruner = Pruner(model, Prune(ratio=0.7, units="layers"), inputs)
    layers = [g for g in pruner.groups if g.kind == "layers" and g.kept is None]
    assert len(layers) == 3
    pruner.step()
    small = pruner.remove()
    left = {name for name, _ in small.named_parameters()}
    for layer in layers:
        weights = [t for t in layer.tensors if t in dict(model.named_parameters())]
        gone = not any(model.get_parameter(t).any() for t in weights)
        assert left.isdisjoint(weights) if gone else left.issuperset(weights)
    assert len([t for layer in layers for t in layer.tensors if t in left]) == len(
        [t for t in layers[0].tensors if t in dict(model.named_parameters())]
    )
    assert small.ir().count("aggregate") < pruner_ir(model, inputs).count("aggregate")
    model.eval(), small.eval()
    for call in (inputs, graph(9, 40)):
        assert_close(small(*call), model(*call).detach())
    # It trains on, is pruned again, and runs on integers.
    small.train()(*inputs).square().mean().backward()
    again = Pruner(small.eval(), Prune(ratio=0.5), inputs)
    again.step()
    assert_close(again.remove()(*inputs), small(*inputs).detach())
    optimized = gnnfx.optimize(small, "int8", inputs, calibration=[inputs])
    want = small(*inputs).detach()
    assert float((optimized(*inputs) - want).abs().max()) < 0.1 * float(want.abs().max())


def pruner_ir(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> str:
    return gnnfx.prepare(model, "fp32", inputs).ir()


def removed(optimized: gnnfx.OptimizedModule) -> list[str]:
    layers = optimized.report.layers
    return sorted(layer.module.split(".")[1] for layer in layers if "layer removed" in layer.done)


def test_the_least_layers_go_and_overrides_stay() -> None:
    torch.manual_seed(0)
    model, inputs = Residual(CONVS["gcn"]).eval(), graph(30, 100)
    with torch.no_grad():
        for number, scale in enumerate((0.1, 10.0, 1.0)):
            model.get_parameter(f"convs.{number}.lin.weight").mul_(scale)
            model.get_parameter(f"norms.{number}.weight").fill_(scale)
    x = model.first(inputs[0])
    conv, norm = model.get_submodule("convs.1"), model.get_submodule("norms.1")
    want = model.last(x + norm(conv(x, inputs[1])).relu())
    optimized = gnnfx.optimize(model, Policy(prune=Prune(0.7, units="layers")), inputs)
    assert_close(optimized(*inputs), want.detach())
    assert removed(optimized) == ["0", "2"]
    kept = Prune(0.5, units="layers", overrides={"convs.0*": 0.0})
    optimized = gnnfx.optimize(model, Policy(prune=kept), inputs)
    assert removed(optimized) == ["2"]


def test_sage_without_its_neighbours_is_a_perceptron() -> None:
    torch.manual_seed(0)
    model, inputs = pyg.GraphSAGE(IN, WIDTH, 2, 3).eval(), graph(30, 100)
    with torch.no_grad():
        model.convs[0].lin_l.weight.mul_(1e-3)
        model.convs[0].lin_l.bias.zero_()
    optimized = gnnfx.optimize(model, Policy(prune=Prune(0.5, units="layers")), inputs)
    hidden = model.convs[0].lin_r(inputs[0]).relu()
    assert_close(optimized(*inputs), model.convs[1](hidden, inputs[1]).detach())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (pyg.GCN(IN, WIDTH, 2, 3), "convs.0.lin.weight has no path around it"),
        (Residual(CONVS["gcn"], nn.Sigmoid), "is not zero where its own weights are"),
        (shared("convs", "norms"), "is not zero where its own weights are"),
        (shared("norms"), "is not zero where its own weights are"),
    ],
    ids=["plain", "sigmoid", "shared", "shared-norm"],
)
def test_reasons(model: nn.Module, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        gnnfx.optimize(model.eval(), Policy(prune=Prune(units="layers")), graph(30, 100))


def test_group_sparsity_of_layers() -> None:
    torch.manual_seed(0)
    model, inputs = Residual(CONVS["gcn"]), graph(30, 100)
    pruner = Pruner(model, Prune(units="layers"), inputs)
    norms = [
        torch.cat([*(p.flatten() for p in [*conv.parameters(), *norm.parameters()])]).norm()
        for conv, norm in zip(model.convs, model.norms, strict=True)
    ]
    torch.testing.assert_close(pruner.penalty(), torch.stack(norms).sum())


def test_aggregation_scores_channels_alone() -> None:
    with pytest.raises(PolicyError, match="criterion 'aggregation' scores channels"):
        Prune(units="layers", criterion="aggregation")
