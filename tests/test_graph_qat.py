"""Quantized training on sets of graphs: folds are disjoint, every method runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnfx import graph_qat
from gnnfx import optimize as real_optimize
from gnnfx.errors import InputError
from gnnfx.finetune import finetune as real_finetune
from gnnfx.graph_qat import GraphGIN
from tests.models import graph


def graphs(count: int = 30) -> list[Data]:
    """Two classes of graphs, twice as many of one, that differ in their features."""
    found = []
    for seed in range(count):
        x, edge_index = graph(10, 30, seed)
        label = int(seed % 3 == 0)
        found.append(Data(x=x[:, :4] + label, edge_index=edge_index, y=torch.tensor([label])))
    return found


class Small(nn.Module):
    """One layer and a pool, in place of the five that take long to capture."""

    FLOAT: ClassVar = ("conv.aggr_module",)

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.conv = pyg.GINConv(nn.Linear(features, outputs))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return pyg.global_mean_pool(self.conv(x, edge_index), batch)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_qat, "GraphGIN", Small)


def test_folds_are_disjoint_and_alike() -> None:
    given = graphs(60)
    for fold in (0, 9):
        parts = graph_qat.split(given, fold, "graph-classification")
        ids = [[id(g) for g in part] for part in (parts.training, parts.validation, parts.test)]
        assert [len(part) for part in ids] == [48, 6, 6]
        assert len({i for part in ids for i in part}) == 60
        assert sum(int(g.y) for g in parts.test) == 2
    before, after = (graph_qat.split(given, fold, "graph-classification") for fold in (2, 3))
    assert [id(g) for g in before.test] == [id(g) for g in after.validation]
    tests = [graph_qat.split(given, fold, "graph-regression").test for fold in range(10)]
    assert len({id(g) for part in tests for g in part}) == 60


def test_a_fold_is_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_qat, "load", lambda dataset, root: graphs())
    out = tmp_path / "out.jsonl"
    settings = {"methods": ("FP32", "DQ"), "folds": 1, "epochs": 2, "out": out}
    found = graph_qat.run("PROTEINS", **settings)  # type: ignore[arg-type]
    assert [(o.method, o.bits, o.seed) for o in found] == [("FP32", 32, 0), ("DQ", 8, 0)]
    assert all(0 <= o.test <= 1 for o in found)
    monkeypatch.setattr(graph_qat, "finetune", None)
    assert graph_qat.run("PROTEINS", **settings) == found  # type: ignore[arg-type]


def test_quantization_after_training_is_of_the_model_in_float(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_qat, "load", lambda dataset, root: graphs())
    trained = []

    def finetune(prepared: Any, *args: Any, **kwargs: Any) -> Any:
        trained.append(prepared)
        return real_finetune(prepared, *args, **kwargs)

    seen = []

    def optimize(*args: Any, calibration: Any, **kwargs: Any) -> Any:
        seen.append(sum(int(batch.max()) + 1 for *_, batch in calibration))
        return real_optimize(*args, calibration=calibration, **kwargs)

    monkeypatch.setattr("gnnfx.graph_qat.finetune", finetune)
    monkeypatch.setattr("gnnfx.qat.optimize", optimize)
    monkeypatch.setattr("gnnfx.graph_qat._BATCH", 10)
    found = graph_qat.run("PROTEINS", methods=("FP32", "PTQ"), bits=(8, 4), folds=1, epochs=2)
    assert [(o.method, o.bits) for o in found] == [("FP32", 32), ("PTQ", 8), ("PTQ", 4)]
    assert len({o.best_epoch for o in found}) == len(trained) == 1
    assert seen == [24, 24]  # all training graphs, in batches of 10, 10 and 4


def test_numbers_are_judged_by_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = graphs()
    for data in numbers:
        data.y = data.y.float()[:, None] * 4
    monkeypatch.setattr(graph_qat, "load", lambda dataset, root: numbers)
    (found,) = graph_qat.run("ESOL", methods=("FP32",), epochs=1, quick=True)
    assert 0.1 < found.test < 8


def test_the_model_has_the_size_of_the_papers() -> None:
    sizes = [p.numel() for p in GraphGIN(1, 2).parameters()]
    assert sum(sizes) == 42_503  # the 5 eps are trained, too


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset must be one of REDDIT-BINARY"):
        graph_qat.run("Cora")
    with pytest.raises(InputError, match="folds must lie between 1 and 10, got 11"):
        graph_qat.run("PROTEINS", folds=11)
