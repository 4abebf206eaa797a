"""`gnnfx.finetune`: a training loop for prepared modules, for those who have none of their own."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from gnnfx.backend.prepared import PreparedModule
from gnnfx.errors import InputError
from gnnfx.tasks import TASKS, Role, Task, TaskName, is_graph

Keep = Literal["best", "lowest-loss", "last"]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch; the metric is accuracy (0 to 1), the mean absolute error in regression, or for
    links the area under the ROC curve."""

    epoch: int
    loss: float
    validation_loss: float
    validation_metric: float


@dataclass(frozen=True, slots=True)
class History:
    """All epochs, and the best: the one whose weights were kept, unless those of the last were."""

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
    task: TaskName = "node-classification",
    validation: Any = None,
    epochs: int = 200,
    patience: int = 100,
    learning_rate: float = 0.01,
    weight_decay: float = 5e-4,
    seed: int = 0,
    keep: Keep = "best",
    optimizer: torch.optim.Optimizer | None = None,
    penalty: Callable[[], Tensor] | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[float], None] | None = None,
    history: Path | None = None,
    console: Console | None = None,
) -> History:
    """Train; afterwards `prepared` has the weights of the epoch that `keep` names.

    data: a loader of batches, anything that can be iterated once an epoch; or, for tasks on nodes
        and links, one PyG `Data`.  The module's arguments are the attributes of the same names.
        Node classification needs `y`, and of a `Data` `train_mask` and `val_mask`, of a loader
        `batch_size`, as PyG's neighbour loaders give it: the first so many nodes count.
        Tasks on graphs need `y`, a row a graph.
        'link' scores the pairs `edge_label_index` by the dot product of the nodes' outputs; where
        `edge_label` names no pair that is no edge, such pairs are drawn in each step.
    validation: the same to be judged on; node classification on one `Data` needs none.
    epochs: the most epochs; training ends after `patience` epochs in which neither the metric nor
        the loss on validation got better.
    seed: given to torch's generator, which dropout, protective masks and loaders draw on.
    keep: the 'best' epoch has the best metric on validation, of equal ones the lowest loss;
        'lowest-loss' the lowest loss on validation, which of few graphs, where many epochs share
        one accuracy, tells more; 'last' takes the last, as when pruning goes on until then.
    optimizer: of parameters of `prepared`; Adam with `learning_rate` and `weight_decay` if None.
    penalty: gives what is added to the loss of each batch, as `gnnfx.Pruner.penalty` does.
    after_step: called after each step of the optimizer, as `gnnfx.Pruner.step` and
        `gnnfx.SparseTraining.step` want to be; the step's gradients are still there.
    after_epoch: called with the mean loss of each epoch, without the penalty, as `gnnfx.Slr.step`
        wants to be.
    history: where to write the epochs, '.csv' or '.json'.
    console: where progress is shown; nowhere if None.

    Raises InputError for data that does not fit the task, and for the optimizer of another module.
    """
    if keep not in get_args(Keep):
        raise InputError(f"keep must be one of {list(get_args(Keep))}, got {keep!r}")
    for name, value in (("epochs", epochs), ("patience", patience)):
        if value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")
    if history is not None and history.suffix not in (".csv", ".json"):
        raise InputError(f"history must be named *.csv or *.json, got {history.name!r}")
    if not isinstance(prepared, PreparedModule):
        raise InputError(
            f"prepared must be the result of gnnfx.prepare, got {type(prepared).__name__}"
        )
    if task not in TASKS:
        raise InputError(f"task must be one of {list(TASKS)}, got {task!r}")
    kind = TASKS[task](tuple(prepared.origin.traced.example))
    training = kind.batches(data, "data")
    one_graph = task == "node-classification" and validation is None and is_graph(data)
    judged = kind.batches(data if one_graph else validation, "validation")
    torch.manual_seed(seed)
    parameters = list(prepared.parameters())
    if optimizer is None:
        optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
    elif not set(parameters) & {p for group in optimizer.param_groups for p in group["params"]}:
        raise InputError("optimizer has no parameter of prepared; make it of prepared.parameters()")
    done: list[Epoch] = []
    best, lowest, waited = None, math.inf, 0
    weights = prepared.state_dict()
    with _progress(console) as bars:
        bar = bars.add_task(f"train ({task})", total=epochs)
        for number in range(1, epochs + 1):
            loss = _train(prepared, optimizer, kind, training, penalty, after_step)
            if after_epoch is not None:
                after_epoch(loss)
            epoch = Epoch(number, loss, *_evaluate(prepared, kind, judged))
            done.append(epoch)
            waited += 1
            if best is None or _better(kind, keep, epoch, best):
                best, weights, waited = epoch, copy.deepcopy(prepared.state_dict()), 0
            if epoch.validation_loss < lowest:
                lowest, waited = epoch.validation_loss, 0
            stop = waited == patience
            bars.update(bar, completed=number, total=number if stop else epochs)
            if stop:
                break
    assert best is not None
    if keep != "last":
        prepared.load_state_dict(weights)
    found = History(tuple(done), best)
    if history is not None:
        found.save(history)
    return found


def _better(task: Task, keep: Keep, epoch: Epoch, than: Epoch) -> bool:
    if keep == "lowest-loss":
        return epoch.validation_loss < than.validation_loss
    one, other = task.sign * epoch.validation_metric, task.sign * than.validation_metric
    return one > other or (one == other and epoch.validation_loss < than.validation_loss)


def _forward(module: nn.Module, task: Task, batch: Any) -> Tensor:
    if missing := [name for name in task.arguments if getattr(batch, name, None) is None]:
        raise InputError(f"a batch lacks the module's arguments {missing}")
    out: Tensor = module(**{name: getattr(batch, name) for name in task.arguments})
    return out


def evaluate(
    module: nn.Module,
    data: Any,
    arguments: tuple[str, ...],
    task: TaskName = "node-classification",
    role: Role = "validation",
) -> float:
    """The metric of `module`, of any kind, in eval mode.

    data: as for `finetune`.
    arguments: names of the module's arguments.
    role: which nodes of a `Data` count, those of `val_mask` or of `test_mask`.
    """
    kind = TASKS[task](arguments)
    return _evaluate(module, kind, kind.batches(data, role), role)[1]


def _train(
    prepared: PreparedModule,
    optimizer: torch.optim.Optimizer,
    task: Task,
    batches: Iterable[Any],
    penalty: Callable[[], Tensor] | None,
    after_step: Callable[[], None] | None,
) -> float:
    """The mean loss of one epoch, without the penalty."""
    prepared.train()
    total, count = 0.0, 0
    for batch in batches:
        optimizer.zero_grad()
        out, target = task.select(_forward(prepared, task, batch), batch, "data")
        loss = task.loss(out, target)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        total, count = total + float(loss.detach()) * len(out), count + len(out)
    if count == 0:
        raise InputError("data is empty; expected at least one target")
    return total / count


@torch.no_grad()
def _evaluate(
    module: nn.Module, task: Task, batches: Iterable[Any], role: Role = "validation"
) -> tuple[float, float]:
    """Loss and metric."""
    module.eval()
    outs, targets = [], []
    for batch in batches:
        out, target = task.select(_forward(module, task, batch), batch, role)
        outs.append(out)
        targets.append(target)
    if not sum(map(len, outs)):
        raise InputError(f"{role} is empty; expected at least one target")
    out, target = torch.cat(outs), torch.cat(targets)
    return float(task.loss(out, target)), task.metric(out, target)


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
