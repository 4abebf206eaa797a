"""finetune: learns, keeps the best epoch, is reproducible, and names what does not fit."""

from __future__ import annotations

import csv
import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

import gnnfx
from gnnfx.errors import InputError
from gnnfx.pruning.masks import keeper_of_zeros
from gnnfx.tasks import area_under_roc, sample_absent_pairs
from tests.models import IN, OUT, GraphClassifier, graph, make


def nodes() -> Data:
    """A graph whose labels can be read off its features."""
    x, edge_index = graph(200, 800)
    y = x[:, :OUT].argmax(1)
    order = torch.arange(200)
    return Data(x=x, edge_index=edge_index, y=y, train_mask=order < 120, val_mask=order >= 120)


def graphs(count: int = 24) -> list[Data]:
    """Graphs whose label is the sign of their first feature."""
    found = []
    for seed in range(count):
        x, edge_index = graph(8, 20, seed)
        label = seed % 2
        x[:, 0] = 2.0 * label - 1.0
        found.append(Data(x=x, edge_index=edge_index, y=torch.tensor([label])))
    return found


def prepared(policy: str = "int8-dq") -> gnnfx.PreparedModule:
    data = nodes()
    return gnnfx.prepare(make("sage"), policy, (data.x, data.edge_index))


def pooled() -> tuple[gnnfx.PreparedModule, DataLoader]:
    batch = Batch.from_data_list(graphs(4))
    torch.manual_seed(0)
    module = gnnfx.prepare(GraphClassifier(), "int8-dq", (batch.x, batch.edge_index, batch.batch))
    return module, DataLoader(graphs(), batch_size=8, shuffle=True)


def test_nodes_are_learned_and_the_best_epoch_is_kept() -> None:
    module = prepared()
    history = gnnfx.finetune(module, nodes(), epochs=30)
    assert history.epochs[-1].loss < 0.7 * history.epochs[0].loss
    assert history.best.validation_metric == max(e.validation_metric for e in history.epochs)
    data = nodes()
    with torch.no_grad():
        integer = gnnfx.convert(module)(data.x, data.edge_index)
    found = (integer.argmax(1) == data.y)[data.val_mask].float().mean()
    assert float(found) == pytest.approx(history.best.validation_metric, abs=0.02)


def test_the_same_seed_gives_the_same_epochs() -> None:
    runs = [gnnfx.finetune(prepared("int4-dq"), nodes(), epochs=4, seed=s) for s in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_training_stops_when_validation_no_longer_improves() -> None:
    history = gnnfx.finetune(prepared("fp32"), nodes(), epochs=50, patience=2, learning_rate=0.0)
    assert len(history.epochs) == 3


def test_graphs_are_learned_from_a_loader() -> None:
    module, loader = pooled()
    history = gnnfx.finetune(
        module, loader, task="graph-classification", validation=loader, epochs=15
    )
    assert history.best.validation_metric > 0.9


def test_graphs_are_regressed() -> None:
    batch = Batch.from_data_list(graphs(4))
    for data in (data_list := graphs()):
        data.y = data.x[:1, :OUT]
    arguments = (batch.x, batch.edge_index, batch.batch)
    module = gnnfx.prepare(GraphClassifier(), "int8-dq", arguments)
    loader = DataLoader(data_list, batch_size=8)
    history = gnnfx.finetune(module, loader, task="graph-regression", validation=loader, epochs=10)
    assert history.best.validation_metric < history.epochs[0].validation_metric


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_the_history_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"history.{suffix}"
    history = gnnfx.finetune(prepared("fp32"), nodes(), epochs=3, history=path)
    if suffix == "csv":
        with path.open() as file:
            rows: list[Any] = list(csv.DictReader(file))
    else:
        rows = json.loads(path.read_text())["epochs"]
    assert [float(row["loss"]) for row in rows] == [e.loss for e in history.epochs]


@functools.cache
def untrained() -> gnnfx.PreparedModule:
    """A module for calls that end before it is trained."""
    return prepared("fp32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"task": "clustering"}, "task must be one of"),
        ({"data": Data(x=torch.rand(3, IN))}, "data lacks"),
        ({"data": graphs(1)[0]}, r"data lacks \['train_mask'\]"),
        ({"data": graphs(2)}, "validation must be a loader of batches, got NoneType"),
        ({"data": iter(graphs(2))}, "once an epoch, got an iterator"),
        ({"data": graphs(2), "validation": graphs(2)}, "neither batch_size, which"),
        ({"data": [], "validation": graphs(2)}, "data is empty"),
        ({"task": "link"}, r"data lacks \['edge_label_index'\]"),
        ({"task": "graph-classification"}, "data must be a loader"),
        ({"task": "graph-regression", "validation": Data()}, "data must be a loader"),
        ({"prepared": make("gcn")}, r"result of gnnfx\.prepare"),
        ({"history": Path("history.txt")}, r"\*\.csv or \*\.json"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"prepared": None, "data": nodes(), **changes}
    module = arguments.pop("prepared") or untrained()
    with pytest.raises(InputError, match=message):
        gnnfx.finetune(module, arguments.pop("data"), **arguments)


def halves() -> list[Data]:
    """The graph of `nodes` in two batches as neighbour loaders make them: targets come first."""
    whole = nodes()
    found = []
    for start in (0, 100):
        order = torch.cat(
            [torch.arange(start, start + 100), torch.arange(100 - start, 200 - start)]
        )
        place = torch.empty_like(order).scatter_(0, order, torch.arange(200))
        y = whole.y[order].clone()
        y[100:] = -1  # targets that must not count
        found.append(
            Data(x=whole.x[order], edge_index=place[whole.edge_index], y=y, batch_size=100)
        )
    return found


def test_nodes_are_learned_from_a_neighbour_loader() -> None:
    history = gnnfx.finetune(prepared(), halves(), validation=halves(), epochs=15)
    assert history.best.validation_metric > 0.8


def two_groups(negatives: bool) -> Data:
    """Two groups of nodes that are linked only within, features that tell the group."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(60) % 2
    x = torch.randn(60, IN, generator=generator) + 3 * group[:, None] * torch.ones(IN)
    pairs = torch.randint(60, (2, 1200), generator=generator)
    same = group[pairs[0]] == group[pairs[1]]
    links, others = pairs[:, same], pairs[:, ~same]
    data = Data(x=x, edge_index=links[:, :200], edge_label_index=links[:, 200:400])
    if negatives:
        data.edge_label_index = torch.cat([links[:, 400:500], others[:, :100]], 1)
        data.edge_label = torch.arange(200) < 100
    return data


def test_links_are_learned_from_edges_and_drawn_pairs() -> None:
    data, validation = two_groups(negatives=False), two_groups(negatives=True)
    module = gnnfx.prepare(make("sage"), "int8-dq", (data.x, data.edge_index))
    history = gnnfx.finetune(module, data, task="link", validation=validation, epochs=15)
    assert history.best.validation_metric > 0.9
    loaded = gnnfx.finetune(module, [data], task="link", validation=[validation], epochs=1)
    assert loaded.best.validation_metric > 0.9


def test_links_need_both_kinds_to_be_judged() -> None:
    data = two_groups(negatives=False)
    module = gnnfx.prepare(make("sage"), "fp32", (data.x, data.edge_index))
    validation = two_groups(negatives=True)
    validation.edge_label = torch.ones(200)
    with pytest.raises(InputError, match="200 pairs with edge_label 1 and 0 with 0; expected both"):
        gnnfx.finetune(module, data, task="link", validation=validation)


def test_drawn_pairs_are_no_edges() -> None:
    edge_index = torch.tensor([[0, 0, 1, 2, 2], [1, 2, 0, 0, 1]])
    for count in (1, 50):
        drawn = sample_absent_pairs(edge_index, count, 3)
        assert len(drawn[0]) == count
        assert drawn.unique(dim=1).tolist() == [[1], [2]]
    with pytest.raises(InputError, match="no pair of the 2 nodes"):
        sample_absent_pairs(torch.tensor([[0, 1], [1, 0]]), 5, 2)


def test_the_area_under_the_curve_equals_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score = torch.randint(20, (300,), generator=torch.Generator().manual_seed(0)) / 10
    positive = torch.arange(300) % 3 == 0
    wanted = metrics.roc_auc_score(positive.numpy(), score.numpy())
    assert area_under_roc(score, positive) == pytest.approx(wanted, abs=1e-12)


def matrices(module: gnnfx.PreparedModule) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_sparse_training_inside(growth: Any) -> None:
    module = prepared("fp32")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    weights = matrices(module)
    sparse = gnnfx.SparseTraining(weights, optimizer, 0.3, end=40, every=5, growth=growth)
    first = {name: mask.clone() for name, mask in sparse.masks.items()}
    history = gnnfx.finetune(
        module, nodes(), epochs=40, optimizer=optimizer, after_step=sparse.step
    )
    assert history.epochs[-1].loss < 0.9 * history.epochs[0].loss
    assert any(not first[n].equal(m) for n, m in sparse.masks.items())
    kept = sum(int((w != 0).sum()) for w in weights.values())
    assert kept <= 0.3 * sum(w.numel() for w in weights.values()) + len(weights)


@pytest.mark.parametrize("method", [gnnfx.Admm, gnnfx.Slr])
def test_train_and_prune_inside(method: Any) -> None:
    module = prepared("fp32")
    weights = matrices(module)
    pull = method(weights, 0.7, rho=0.5)
    far = pull.gap()
    gnnfx.finetune(
        module, nodes(), epochs=40, keep="last", penalty=pull.penalty, after_epoch=pull.step
    )
    assert pull.gap() < 0.7 * far
    pull.prune()
    gnnfx.finetune(module, nodes(), epochs=5, after_step=keeper_of_zeros(weights))
    kept = sum(int((w != 0).sum()) for w in weights.values())
    assert kept <= 0.3 * sum(w.numel() for w in weights.values()) + len(weights)


def test_the_optimizer_of_another_module_is_an_error() -> None:
    optimizer = torch.optim.SGD(prepared("fp32").parameters(), lr=0.1)
    with pytest.raises(InputError, match="no parameter of prepared"):
        gnnfx.finetune(prepared("fp32"), nodes(), epochs=1, optimizer=optimizer)


def test_the_epoch_with_the_lowest_loss_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = iter([(0.9, 0.5), (0.4, 0.6), (0.7, 0.8)])
    monkeypatch.setattr(sys.modules["gnnfx.finetune"], "_evaluate", lambda *arguments: next(judged))
    module, seen = prepared("fp32"), []
    first = next(iter(module.parameters()))
    history = gnnfx.finetune(
        module,
        nodes(),
        epochs=3,
        keep="lowest-loss",
        after_epoch=lambda loss: seen.append(first.detach().clone()),
    )
    assert history.best.epoch == 2
    assert first.equal(seen[1])
    assert not first.equal(seen[2])


def test_an_unknown_epoch_to_keep_is_an_error() -> None:
    with pytest.raises(InputError, match="keep must be one of"):
        gnnfx.finetune(prepared("fp32"), nodes(), epochs=1, keep="first")  # type: ignore[arg-type]
