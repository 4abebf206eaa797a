"""Generated models, pruned at random: removal changes nothing that masking did not.

The models have skips, concatenations, heads, shared layers, norms, products and jumping knowledge
in random order.  The first examples run always; all of them with GNNFX_EXAMPLES=300.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch_geometric.nn as pyg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gnnfx.frontend.trace import trace
from gnnfx.ir.program import Program
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.pipeline import FLOAT_FACTS, raise_passes, removal_passes
from gnnfx.policy import Policy, Prune
from gnnfx.pruning.groups import find_groups
from gnnfx.pruning.masks import unit_masks
from tests.models import IN, graph

EXAMPLES = int(os.environ.get("GNNFX_EXAMPLES", "12"))

CONVS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": lambda i, o: pyg.GCNConv(i, o),
    "sage": lambda i, o: pyg.SAGEConv(i, o, aggr="max"),
    "gin": lambda i, o: pyg.GINConv(pyg.MLP([i, 6, o])),
    "gat": lambda i, o: pyg.GATConv(i, o // 2, heads=2),
    "gat-mean": lambda i, o: pyg.GATConv(i, o, heads=3, concat=False, residual=True),
    "gatv2": lambda i, o: pyg.GATv2Conv(i, o // 4, heads=4, share_weights=True),
    "transformer": lambda i, o: pyg.TransformerConv(i, o // 2, heads=2, beta=True),
    "edge": lambda i, o: pyg.EdgeConv(nn.Linear(2 * i, o)),
    "cheb": lambda i, o: pyg.ChebConv(i, o, 2),
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": lambda width: nn.BatchNorm1d(width),
    "batch-plain": lambda width: nn.BatchNorm1d(width, affine=False),
    "layer": lambda width: nn.LayerNorm(width),
    "graph": lambda width: pyg.GraphNorm(width),
    "pair": lambda width: pyg.PairNorm(),
    "mean-subtraction": lambda width: pyg.MeanSubtractionNorm(),
}
ACTIVATIONS = [nn.ReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.PReLU, nn.LeakyReLU]
JOINS = ["plain", "skip", "dense-skip", "product", "gate", "repeat", "halves"]


class Block(nn.Module):
    """A convolution, a norm and an activation, joined to what came before."""

    def __init__(
        self, conv: str, norm: str, activation: type[nn.Module], join: str, i: int, o: int
    ):
        super().__init__()
        self.join = join
        self.conv, self.norm, self.act = CONVS[conv](i, o), NORMS[norm](o), activation()
        self.other = nn.Linear(i, o)
        self.shared = nn.Linear(o, o)
        self.gate = nn.Linear(o, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x, edge_index)))
        match self.join:
            case "skip" if x.shape == h.shape:
                return h + x  # type: ignore[no-any-return]
            case "dense-skip":
                return h + self.other(x)  # type: ignore[no-any-return]
            case "product":
                return h * self.other(x).sigmoid()  # type: ignore[no-any-return]
            case "gate":
                return h * self.gate(h).sigmoid()  # type: ignore[no-any-return]
            case "repeat":
                return self.shared(self.shared(h).relu())  # type: ignore[no-any-return]
            case "halves":
                left, right = h.chunk(2, dim=-1)
                return torch.cat([right.relu(), left], dim=-1)
        return h  # type: ignore[no-any-return]


class Generated(nn.Module):
    """Blocks in a row, then one way of jumping knowledge, then a linear layer."""

    def __init__(self, blocks: list[tuple[str, str, type[nn.Module], str, int]], jump: str):
        super().__init__()
        widths = [IN, *(8 if jump == "max" else width for *_, width in blocks)]
        self.blocks = nn.ModuleList(
            Block(*block[:4], widths[n], widths[n + 1]) for n, block in enumerate(blocks)
        )
        self.jump = jump
        self.out = nn.Linear(sum(widths[1:]) if jump == "cat" else widths[-1], 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        seen = []
        for block in self.blocks:
            x = block(x, edge_index)
            seen.append(x)
        if self.jump == "cat":
            x = torch.cat(seen, dim=-1)
        if self.jump == "max":
            x = torch.stack(seen, dim=-1).max(dim=-1)[0]
        return self.out(x)  # type: ignore[no-any-return]


BLOCKS = st.tuples(
    st.sampled_from(list(CONVS)),
    st.sampled_from(list(NORMS)),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(JOINS),
    st.sampled_from([4, 8, 12]),
)


def masked(program: Program, ratio: float, generator: torch.Generator) -> tuple[Program, int]:
    """The program with random units of every group at zero, and how many."""
    groups = find_groups(program)
    units = []
    for group in groups.removable():
        order = torch.randperm(len(group.units), generator=generator).tolist()
        units += [group.units[i] for i in order[: int(ratio * len(order))]]
    masks = unit_masks(groups, units, program.tensors)
    program = program.copy()
    for name, mask in masks.items():
        program.tensors[name] = program.tensors[name] * mask
    return program, len(units)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=3),
    jump=st.sampled_from(["last", "cat", "max"]),
    ratio=st.floats(0.1, 1.0),
    seed=st.integers(0, 1000),
)
def test_removed_equals_masked(
    blocks: list[tuple[str, str, type[nn.Module], str, int]], jump: str, ratio: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Generated(blocks, jump).eval()
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if "var" in key else buffer.normal_()
    program = PassManager(raise_passes()).run(trace(model, graph(30, 100)).program, PassContext())
    before, units = masked(program, ratio, torch.Generator().manual_seed(seed))
    manager = PassManager(removal_passes(), FLOAT_FACTS)
    after = manager.run(before, PassContext(Policy(prune=Prune())))
    verify(after, before)
    if units:
        sizes = [sum(t.numel() for t in p.tensors.values()) for p in (before, after)]
        assert sizes[1] < sizes[0]
    inputs = graph(13, 40, seed)
    # Sums in another order, in float64: what is left is what removal changed.
    (want,), (got,) = (_double(p).run(inputs[0].double(), inputs[1]) for p in (before, after))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


def _double(program: Program) -> Program:
    program = program.copy()
    program.tensors = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in program.tensors.items()
    }
    return program
