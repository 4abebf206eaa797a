"""Channel groups of whole models: found, shown, drawn, and compiled after removal."""

from __future__ import annotations

import io

import networkx as nx
import pytest
import torch
from rich.console import Console

import gnnfx
from gnnfx import Policy, Prune, Pruner
from tests.models import NODE_MODELS, graph, make


def pruner(name: str) -> Pruner:
    return Pruner(make(name), Prune(), graph(30, 100))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gcn", {("convs.0.lin.weight", "channels"): 16}),
        (
            "gcn-norm-jk",
            {(f"convs.{i}.lin.weight", "channels"): 16 for i in range(3)},
        ),
        (
            "gin",
            {
                ("convs.0.nn.lins.0.weight", "channels"): 16,
                ("convs.0.nn.lins.1.weight", "channels"): 16,
                ("convs.1.nn.lins.0.weight", "channels"): 5,
            },
        ),
        (
            "gat",
            {
                ("convs.0.lin.weight", "heads"): 4,
                ("convs.0.lin.weight", "channels"): 4,
                ("convs.1.lin.weight", "heads"): 4,
            },
        ),
        (
            "custom-gated",
            {
                ("first.value.weight", "channels"): 16,
                ("first.value.weight", "layers"): 1,
                ("second.value.weight", "layers"): 1,
            },
        ),
        ("hand-written", {("lin.weight", "channels"): 8}),
    ],
)
def test_groups_that_can_be_removed(name: str, found: dict[tuple[str, str], int]) -> None:
    groups = pruner(name).groups.removable()
    assert {(g.name, g.kind): len(g.units) for g in groups} == found


def test_inputs_and_outputs_keep_their_width() -> None:
    kept = {(g.kind, len(g.units)): g.kept for g in pruner("gcn").groups if g.kept is not None}
    assert kept == {
        ("channels", 20): "is an input of the model",
        ("channels", 5): "is an output of the model",
        ("layers", 1): "has no path around it",
    }


def test_jumping_knowledge_reads_each_layer_at_its_offset() -> None:
    groups = [g for g in pruner("gcn-norm-jk").groups if g.kept is None]
    for number, group in enumerate(groups):
        places = [dict((t, p) for t, _, p in u.slices)["lin.weight"] for u in group.units]
        assert places == [(16 * number + i,) for i in range(16)]


def test_table_and_drawing_name_every_group() -> None:
    groups = pruner("gat").groups
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(groups.table())
    text = capture.get()
    drawing = groups.to_networkx()
    assert nx.is_bipartite(drawing)
    for number, group in enumerate(groups):
        assert group.name in text
        assert drawing.nodes[number]["units"] == len(group.units)
        assert set(drawing[number]) == set(group.tensors)


@pytest.mark.parametrize("name", NODE_MODELS)
def test_optimize_with_pruning_answers_for_other_graphs(name: str) -> None:
    model, inputs = make(name), graph(30, 100)
    optimized = gnnfx.optimize(model, Policy(prune=Prune(ratio=0.25)), inputs)
    remarks = [text for layer in optimized.report.layers for text in layer.done]
    assert any(text.endswith("channels removed") for text in remarks)
    masking = Pruner(make(name), Prune(ratio=0.25), inputs)
    masking.step()
    other = graph(9, 40)
    want = masking.model(*other).detach()
    scale = float(want.abs().max())
    torch.testing.assert_close(optimized(*other), want, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_a_pruned_model_compiles(name: str) -> None:
    model, inputs = make(name), graph(30, 100)
    optimized = gnnfx.optimize(model, Policy(prune=Prune()), inputs)
    compiled = torch.compile(optimized, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), optimized(*inputs))
