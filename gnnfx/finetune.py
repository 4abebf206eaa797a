"""`gnnfx.finetune`: a training loop for prepared modules, for those who have none of their own."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from gnnfx.backend.prepared import PreparedModule
from gnnfx.errors import InputError

Task = Literal["node-classification", "graph-classification", "graph-regression"]
_TASKS = ("node-classification", "graph-classification", "graph-regression")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch; the metric is accuracy (0 to 1) or, in regression, the mean absolute error."""

    epoch: int
    loss: float
    validation_loss: float
    validation_metric: float


@dataclass(frozen=True, slots=True)
class History:
    """All epochs, and the one whose weights were kept."""

    epochs: tuple[Epoch, ...]
    best: Epoch

    def to_json(self) -> str:
        """Both, as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def save(self, path: Path) -> None:
        """Write '.csv', one line an epoch, or '.json'; raises InputError for other names."""
        if path.suffix == ".json":
            path.write_text(self.to_json() + "\n")
        elif path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
                writer.writeheader()
                writer.writerows(asdict(epoch) for epoch in self.epochs)
        else:
            raise InputError(f"history must be named *.csv or *.json, got {path.name!r}")


def finetune(
    prepared: PreparedModule,
    data: Any,
    *,
    task: Task = "node-classification",
    validation: Iterable[Any] | None = None,
    epochs: int = 200,
    patience: int = 100,
    learning_rate: float = 0.01,
    weight_decay: float = 5e-4,
    seed: int = 0,
    keep: Literal["best", "last"] = "best",
    after_step: Callable[[], None] | None = None,
    history: Path | None = None,
    console: Console | None = None,
) -> History:
    """Train with Adam; afterwards `prepared` has the weights of its best epoch on validation.

    data: for node classification a PyG `Data` with `y`, `train_mask` and `val_mask`, of which every
        epoch sees the whole; for graphs a loader of batches with `y`.  The module's arguments are
        the attributes of the same names.
    validation: a loader of batches, for tasks on graphs.
    epochs: the most epochs; training ends after `patience` epochs in which neither the metric nor
        the loss on validation got better.
    seed: given to torch's generator, which dropout, protective masks and loaders draw on.
    keep: keep the weights of the 'last' epoch instead, as when pruning goes on until then.
    after_step: called after each step of the optimizer, as `gnnfx.Pruner.step` wants to be.
    history: where to write the epochs, '.csv' or '.json'.
    console: where progress is shown; nowhere if None.

    Raises InputError for data that does not fit the task.
    """
    for name, value in (("epochs", epochs), ("patience", patience)):
        if value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")
    if history is not None and history.suffix not in (".csv", ".json"):
        raise InputError(f"history must be named *.csv or *.json, got {history.name!r}")
    batches = _batches(prepared, data, task, validation)
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=learning_rate, weight_decay=weight_decay)
    done: list[Epoch] = []
    best, lowest, waited = None, math.inf, 0
    weights = prepared.state_dict()
    with _progress(console) as bars:
        bar = bars.add_task(f"train ({task})", total=epochs)
        for number in range(1, epochs + 1):
            loss = _train(prepared, optimizer, batches, after_step)
            epoch = Epoch(number, loss, *_evaluate(prepared, batches))
            done.append(epoch)
            waited += 1
            if best is None or batches.better(epoch, best):
                best, weights, waited = epoch, copy.deepcopy(prepared.state_dict()), 0
            if epoch.validation_loss < lowest:
                lowest, waited = epoch.validation_loss, 0
            stop = waited == patience
            bars.update(bar, completed=number, total=number if stop else epochs)
            if stop:
                break
    assert best is not None
    if keep == "best":
        prepared.load_state_dict(weights)
    found = History(tuple(done), best)
    if history is not None:
        found.save(history)
    return found


@dataclass(frozen=True)
class _Batches:
    """What is trained and validated on: (data, rows that count or None)."""

    task: Task
    arguments: tuple[str, ...]
    training: Iterable[tuple[Any, Tensor | None]]
    validation: Iterable[tuple[Any, Tensor | None]]

    def better(self, epoch: Epoch, than: Epoch) -> bool:
        sign = -1 if self.task == "graph-regression" else 1
        one, other = sign * epoch.validation_metric, sign * than.validation_metric
        return one > other or (one == other and epoch.validation_loss < than.validation_loss)


class _Loaded:
    """The batches of a loader, all rows of which count."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Any:
        return ((batch, None) for batch in self._loader)


def _batches(
    prepared: PreparedModule, data: Any, task: Task, validation: Iterable[Any] | None
) -> _Batches:
    if not isinstance(prepared, PreparedModule):
        raise InputError(
            f"prepared must be the result of gnnfx.prepare, got {type(prepared).__name__}"
        )
    if task not in _TASKS:
        raise InputError(f"task must be one of {list(_TASKS)}, got {task!r}")
    arguments = tuple(prepared.origin.traced.example)
    if task == "node-classification":
        wanted = (*arguments, "y", "train_mask", "val_mask")
        missing = [name for name in wanted if getattr(data, name, None) is None]
        if missing:
            raise InputError(f"data lacks {missing}; node classification needs {list(wanted)}")
        return _Batches(task, arguments, [(data, data.train_mask)], [(data, data.val_mask)])
    if validation is None:
        raise InputError(f"validation must be a loader of batches for task {task!r}, got None")
    for name, loader in (("data", data), ("validation", validation)):
        if not isinstance(loader, Iterable) or hasattr(loader, "edge_index"):
            raise InputError(f"{name} must be a loader of batches, got {type(loader).__name__}")
    return _Batches(task, arguments, _Loaded(data), _Loaded(validation))


def evaluate(
    module: nn.Module,
    data: Any,
    arguments: tuple[str, ...],
    task: Task = "node-classification",
    rows: str = "val_mask",
) -> float:
    """The metric of `module`, of any kind, in eval mode.

    data: as for `finetune`; a loader for tasks on graphs.
    arguments: names of the module's arguments.
    rows: the mask of the nodes that count.
    """
    found = [(data, data[rows])] if task == "node-classification" else _Loaded(data)
    return _evaluate(module, _Batches(task, arguments, (), found))[1]


def _forward(
    prepared: nn.Module, batches: _Batches, data: Any, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs and targets of the rows that count."""
    out: Tensor = prepared(**{name: getattr(data, name) for name in batches.arguments})
    y: Tensor = data.y
    if rows is not None:
        return out[rows], y[rows]
    if len(out) != len(y):
        raise InputError(f"the batch has {len(y)} targets y, but the module gives {len(out)} rows")
    return out, y


def _loss(batches: _Batches, out: Tensor, y: Tensor) -> Tensor:
    if batches.task == "graph-regression":
        return functional.mse_loss(out, y.view_as(out).to(out.dtype))
    return functional.cross_entropy(out, y)


def _train(
    prepared: PreparedModule,
    optimizer: torch.optim.Optimizer,
    batches: _Batches,
    after_step: Callable[[], None] | None,
) -> float:
    """The mean loss of one epoch."""
    prepared.train()
    total, count = 0.0, 0
    for data, rows in batches.training:
        optimizer.zero_grad()
        out, y = _forward(prepared, batches, data, rows)
        loss = _loss(batches, out, y)
        loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        total, count = total + float(loss.detach()) * len(out), count + len(out)
    return total / max(count, 1)


@torch.no_grad()
def _evaluate(prepared: nn.Module, batches: _Batches) -> tuple[float, float]:
    """Loss and metric on validation."""
    prepared.eval()
    loss, metric, count = 0.0, 0.0, 0
    for data, rows in batches.validation:
        out, y = _forward(prepared, batches, data, rows)
        loss += float(_loss(batches, out, y)) * len(out)
        if batches.task == "graph-regression":
            metric += float((out - y.view_as(out)).abs().mean(tuple(range(1, out.dim()))).sum())
        else:
            metric += float((out.argmax(-1) == y).sum())
        count += len(out)
    if count == 0:
        raise InputError("validation is empty; expected at least one target")
    return loss / count, metric / count


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
        transient=True,
    )
