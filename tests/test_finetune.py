"""finetune: learns, keeps the best epoch, is reproducible, and names what does not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

import gnnfx
from gnnfx.errors import InputError
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"task": "link-prediction"}, "task must be one of"),
        ({"data": Data(x=torch.rand(3, IN))}, "data lacks"),
        ({"task": "graph-classification"}, "validation must be a loader"),
        ({"task": "graph-regression", "validation": Data()}, "data must be a loader"),
        ({"prepared": make("gcn")}, r"result of gnnfx\.prepare"),
        ({"history": Path("history.txt")}, r"\*\.csv or \*\.json"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"prepared": None, "data": nodes(), **changes}
    module = arguments.pop("prepared") or prepared("fp32")
    with pytest.raises(InputError, match=message):
        gnnfx.finetune(module, arguments.pop("data"), **arguments)
