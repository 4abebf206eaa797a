"""Every family of layers and norms: removing channels equals masking them, or a reason is given.

GCN, GAT, GIN, Chebyshev, edge and transformer layers and the norms of nodes are in
test_generated_models.  Each stands between linear layers; every other channel of them and of its
own is pruned.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from gnnfx.frontend.trace import trace
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.passes.prune_channels import PruneChannels
from gnnfx.pipeline import FLOAT_FACTS, raise_passes
from gnnfx.pruning.follow import INPUT
from gnnfx.pruning.groups import OUTPUT, find_groups
from gnnfx.pruning.masks import masked, unit_masks
from tests.models import IN, OUT, graph

W = 8


def mlp(*sizes: int) -> nn.Module:
    return pyg.MLP(list(sizes), norm=None)  # type: ignore[no-any-return]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "agnn": lambda: pyg.AGNNConv(),
    "antisymmetric": lambda: pyg.AntiSymmetricConv(W),
    "appnp": lambda: pyg.APPNP(2, 0.1),
    "cluster-gcn": lambda: pyg.ClusterGCNConv(W, W),
    "dir-gnn": lambda: pyg.DirGNNConv(pyg.SAGEConv(W, W)),
    "eg": lambda: pyg.EGConv(W, W, num_heads=4, num_bases=2),
    "feast": lambda: pyg.FeaStConv(W, W, heads=2),
    "film": lambda: pyg.FiLMConv(W, W),
    "gen": lambda: pyg.GENConv(W, W),
    "general": lambda: pyg.GeneralConv(W, W),
    "graph": lambda: pyg.GraphConv(W, W),
    "hypergraph": lambda: pyg.HypergraphConv(W, W),
    "le": lambda: pyg.LEConv(W, W),
    "lg": lambda: pyg.LGConv(),
    "pna": lambda: pyg.PNAConv(
        W, W, aggregators=["mean", "std"], scalers=["identity"], deg=torch.tensor([1, 5, 9])
    ),
    "res-gated": lambda: pyg.ResGatedGraphConv(W, W),
    "sage-project": lambda: pyg.SAGEConv(W, W, project=True, normalize=True),
    "sage-several": lambda: pyg.SAGEConv(W, W, aggr=["mean", "max", "std"]),
    "sage-softmax": lambda: pyg.SAGEConv(W, W, aggr=pyg.SoftmaxAggregation()),
    "sage-power-mean": lambda: pyg.SAGEConv(W, W, aggr=pyg.PowerMeanAggregation()),
    "sg": lambda: pyg.SGConv(W, W, K=2),
    "simple": lambda: pyg.SimpleConv(),
    "super-gat": lambda: pyg.SuperGATConv(W, 2, heads=4),
    "tag": lambda: pyg.TAGConv(W, W),
    "wl-continuous": lambda: pyg.WLConvContinuous(),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "diff-group-norm": lambda: pyg.DiffGroupNorm(W, groups=3),
    "graph-size-norm": lambda: pyg.GraphSizeNorm(),
    "instance-norm": lambda: pyg.InstanceNorm(W),
    "instance-norm-affine": lambda: pyg.InstanceNorm(W, affine=True, track_running_stats=True),
    "layer-norm-of-graph": lambda: pyg.LayerNorm(W),
    "layer-norm-of-graph-plain": lambda: pyg.LayerNorm(W, affine=False),
    "rms-norm": lambda: nn.RMSNorm(W),
}
# What is left as wide as it is, with the reason; all around it is pruned.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "arma": (lambda: pyg.ARMAConv(W, W, num_stacks=2), "meets aten.index_select.default"),
    "gated": (lambda: pyg.GatedGraphConv(W, 1), "meets aten.gru_cell.default"),
    "gps": (lambda: pyg.GPSConv(W, pyg.SAGEConv(W, W), heads=4), "meets aten.index.Tensor"),
    "mf": (lambda: pyg.MFConv(W, W, max_degree=2), "meets aten.index_copy.default"),
    "group-norm": (lambda: nn.GroupNorm(2, W), "is averaged by a group norm with the other"),
}


class Between(nn.Module):
    """Layers and norms, each between two linear layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.linear = nn.ModuleList([nn.Linear(IN, W), *(nn.Linear(W, W) for _ in layers[1:])])
        self.last = nn.Linear(W, OUT)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for linear, layer in zip(self.linear, self.layers, strict=True):
            x = linear(x).tanh()
            norm = type(layer).__name__.endswith(("Norm", "Norm1d"))
            x = layer(x) if norm else layer(x, edge_index)
        return self.last(x.tanh())  # type: ignore[no-any-return]


def pruned(layers: list[nn.Module]) -> tuple[int, set[str | None]]:
    """(values that went, reasons of what stayed); raises AssertionError if results change."""
    torch.manual_seed(0)
    model = Between(layers)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and "running" in name:
            buffer.uniform_(0.5, 1.5)
    x, edge_index = graph(30, 100)
    # In float64, as norms of a few values turn the noise of float32 into more than 1e-6.
    inputs = x.double(), edge_index
    traced = trace(model.double().eval(), inputs)
    before = PassManager(raise_passes()).run(traced.program, PassContext())
    groups = find_groups(before)
    units = [u for group in groups.removable() for u in group.units[::2]]
    for name, mask in unit_masks(groups, units, before.tensors).items():
        before.tensors[name] = masked(before.tensors[name], mask)
    after = PassManager([PruneChannels()], FLOAT_FACTS).run(before, PassContext())
    for want, got in zip(before.run(*inputs), after.run(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))
    sizes = [sum(t.numel() for t in p.tensors.values()) for p in (before, after)]
    kept = {g.kept for g in groups if g.kind != "layers"} - {None, INPUT, OUTPUT}
    return sizes[0] - sizes[1], kept


# Capturing takes most of the time, so several share a model.
FOLLOWED = {**LAYERS, **NORMS}
TOGETHER = [list(FOLLOWED)[first::5] for first in range(5)]


@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_removed_equals_masked(names: list[str]) -> None:
    torch.manual_seed(0)
    gone, reasons = pruned([FOLLOWED[name]() for name in names])
    assert gone > len(names) * W * W / 2
    # The weights of a softmax over heads or clusters are no channels.
    assert reasons <= {"every channel enters softmax"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_alone_has_a_reason(name: str) -> None:
    layer, reason = REFUSED[name]
    torch.manual_seed(0)
    _, reasons = pruned([layer()])
    assert any(reason in str(found) for found in reasons), reasons
