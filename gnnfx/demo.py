"""The main job on one model: train it, optimize it, measure both, show one table.

The default dataset needs no network: scikit-learn's handwritten digits, joined to their nearest
neighbours.  Every other dataset is one of PyTorch Geometric's own, under the `root` that is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.datasets import Amazon, Coauthor, Planetoid
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE
from torch_geometric.transforms import Compose, NormalizeFeatures, RandomNodeSplit

from gnnfx.api import optimize
from gnnfx.backend.module import OptimizedModule
from gnnfx.errors import InputError
from gnnfx.measure import (
    Spread,
    interleaved_seconds,
    new_graphs,
    parameter_bytes,
    peak_bytes,
    ratios,
)
from gnnfx.policy import as_policy

DATA_ROOT = Path("data")
NEIGHBOURS = 8
TRAIN_PER_CLASS = 20
VALIDATION_NODES = 300

MODELS = ("GCN", "SAGE", "GIN", "GAT", "GATv2")
DATASETS = ("digits", "Cora", "CiteSeer", "PubMed", "Computers", "Photo", "CS", "Physics")
_FAMILY = {
    **dict.fromkeys(("Cora", "CiteSeer", "PubMed"), "Planetoid"),
    **dict.fromkeys(("Computers", "Photo"), "Amazon"),
    **dict.fromkeys(("CS", "Physics"), "Coauthor"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table.  Times in seconds, memory in bytes, accuracy between 0 and 1."""

    accuracy: float
    warm: Spread
    new_graph: Spread
    peak_bytes: int
    parameter_bytes: int


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What `run` found: both rows, and how often the optimized module is faster."""

    title: str
    eager: Measured
    optimized: Measured
    warm_ratio: Spread
    new_graph_ratio: Spread
    module: OptimizedModule

    def table(self) -> Table:
        """Eager against optimized, and the ratio of the two."""
        table = Table(
            title=Text(self.title),
            caption=Text(
                "time of a call: median [quartiles]; new graph: one not seen before in every call; "
                "peak memory: of one call; ratio: eager / optimized, accuracy: difference in points"
            ),
        )
        table.add_column("", no_wrap=True)
        for column in (
            "test accuracy\n%",
            "warm graph\nms",
            "new graph\nms",
            "peak memory\nMiB",
            "parameters\nKiB",
        ):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in (("eager", self.eager), ("optimized", self.optimized)):
            table.add_row(
                name,
                f"{100 * row.accuracy:.1f}",
                Text(_milliseconds(row.warm)),
                Text(_milliseconds(row.new_graph)),
                _mebibytes(row.peak_bytes),
                _kibibytes(row.parameter_bytes),
            )
        table.add_section()
        eager, optimized = self.eager, self.optimized
        table.add_row(
            "ratio",
            f"{100 * (optimized.accuracy - eager.accuracy):+.1f}",
            Text(_ratio(self.warm_ratio)),
            Text(_ratio(self.new_graph_ratio)),
            _quotient(eager.peak_bytes, optimized.peak_bytes),
            _quotient(eager.parameter_bytes, optimized.parameter_bytes),
        )
        return table


def run(
    dataset: str = "digits",
    *,
    root: Path = DATA_ROOT,
    model: str = "GCN",
    policy: str = "int8",
    epochs: int = 200,
    seed: int = 0,
    budget: float = 3.0,
    console: Console | None = None,
) -> DemoResult:
    """Train `model` on `dataset`, optimize it under `policy`, and measure both.

    epochs: the most epochs to train; training stops early when validation no longer improves.
    budget: seconds to spend on each of the two latency measurements.
    console: where progress is shown; nowhere if None.
    """
    as_policy(policy)
    model = _choice("model", model, MODELS)
    dataset = _choice("dataset", dataset, DATASETS)
    data, classes = load(dataset, root=root, seed=seed)
    with _progress(console) as bars:
        task = bars.add_task(f"train {model} on {dataset}", total=epochs)
        trained = train(
            model,
            data,
            classes,
            dataset=dataset,
            epochs=epochs,
            seed=seed,
            progress=lambda epoch, total: bars.update(task, completed=epoch, total=total),
        )
        task = bars.add_task(f"optimize ({policy})", total=1)
        x, edge_index = data.x, data.edge_index
        optimized = optimize(trained, policy, (x, edge_index), calibration=[(x, edge_index)])
        bars.update(task, completed=1)
        task = bars.add_task("measure", total=1)
        return _compare(
            f"{model} on {dataset}: {data.num_nodes:,} nodes, {data.num_edges:,} edges, "
            f"policy {policy}, {_device()}",
            trained,
            optimized,
            data,
            budget,
            lambda done, total: bars.update(task, completed=done, total=total),
        )


def load(
    dataset: str, *, root: Path = DATA_ROOT, seed: int = 0, normalize: bool = True
) -> tuple[Data, int]:
    """The graph with train, validation and test masks, and its number of classes.

    PyTorch Geometric keeps the files of a dataset below `root`; where `root` holds a folder of the
    dataset's family (`Planetoid`, `Amazon`, `Coauthor`), that folder is used.  `seed` decides the
    split of datasets that come without one; `normalize` lets the features of a node add up to 1.
    """
    dataset = _choice("dataset", dataset, DATASETS)
    if dataset == "digits":
        return _digits(seed)
    family = _FAMILY[dataset]
    folder = str(root / family if (root / family).is_dir() else root)
    torch.manual_seed(seed)
    split = RandomNodeSplit("random", num_train_per_class=20, num_val=500, num_test=1000)
    features = Compose([NormalizeFeatures()] if normalize else [])
    random = Compose([features, split])
    try:
        if family == "Planetoid":
            loaded = Planetoid(folder, dataset, transform=features)
        elif family == "Amazon":
            loaded = Amazon(folder, dataset, transform=random)
        else:
            loaded = Coauthor(folder, dataset, transform=random)
    except OSError as error:
        raise InputError(
            f"root={folder} does not hold dataset {dataset!r}, and it cannot be downloaded: {error}"
        ) from error
    return loaded[0], loaded.num_classes


def _digits(seed: int) -> tuple[Data, int]:
    """1,797 images of 8x8 pixels, each joined in both directions to its nearest neighbours."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph
    except ImportError as error:
        raise InputError(
            "dataset 'digits' comes with scikit-learn, which is not installed: "
            "install gnnfx[demo] or choose another dataset"
        ) from error
    digits = load_digits()
    near = kneighbors_graph(digits.data, NEIGHBOURS).tocoo()
    pairs = torch.stack([torch.from_numpy(near.col), torch.from_numpy(near.row)]).long()
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1).contiguous()
    y = torch.from_numpy(digits.target).long()
    data = Data(x=torch.from_numpy(digits.data).float() / 16, edge_index=edge_index, y=y)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    classes = int(y.max()) + 1
    train = torch.cat([order[y[order] == label][:TRAIN_PER_CLASS] for label in range(classes)])
    data.train_mask = torch.zeros(len(y), dtype=torch.bool)
    data.train_mask[train] = True
    rest = order[~data.train_mask[order]]
    data.val_mask = torch.zeros_like(data.train_mask)
    data.val_mask[rest[:VALIDATION_NODES]] = True
    data.test_mask = ~(data.train_mask | data.val_mask)
    return data, classes


def build(model: str, in_channels: int, classes: int, *, dataset: str = "digits") -> nn.Module:
    """Two layers with the sizes that are usual for the dataset: Planetoid sets get small ones.

    GIN's sums of dense features need batch norm to train; on the sparse, normalized features of the
    Planetoid sets it does harm.
    """
    model = _choice("model", model, MODELS)
    planetoid = _FAMILY.get(dataset) == "Planetoid"
    hidden = 16 if planetoid else 64
    common: dict[str, Any] = {"num_layers": 2, "out_channels": classes, "dropout": 0.5}
    module: nn.Module
    if model == "GCN":
        module = GCN(in_channels, hidden, **common)
    elif model == "SAGE":
        module = GraphSAGE(in_channels, hidden, **common)
    elif model == "GIN":
        norm = None if planetoid else "batch_norm"
        module = GIN(in_channels, hidden, norm=norm, **common)
    else:
        module = GAT(in_channels, 64, heads=8, v2=model == "GATv2", **common)
    return module


def train(
    model: str,
    data: Data,
    classes: int,
    *,
    dataset: str = "digits",
    epochs: int = 200,
    patience: int = 50,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """A trained model in eval mode, with the weights of its best validation accuracy.

    Adam with a learning rate of 0.01 and a weight decay of 5e-4; training ends after `epochs`, or
    after `patience` epochs in which neither validation accuracy nor loss got better.  `progress` is
    told the epochs done and planned.
    """
    if epochs < 1:
        raise InputError(f"epochs must be 1 or more, got {epochs}")
    torch.manual_seed(seed)
    module = build(model, data.num_features, classes, dataset=dataset)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=5e-4)
    best_accuracy, best_loss, waited = -1.0, math.inf, 0
    best = copy.deepcopy(module.state_dict())
    for epoch in range(1, epochs + 1):
        module.train()
        optimizer.zero_grad()
        out = module(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        out = _evaluate(module, data)
        validation = float(F.cross_entropy(out[data.val_mask], data.y[data.val_mask]))
        correct = accuracy(out, data.y, data.val_mask)
        waited += 1
        if correct > best_accuracy or (correct == best_accuracy and validation < best_loss):
            best = copy.deepcopy(module.state_dict())
        if correct > best_accuracy or validation < best_loss:
            waited = 0
        best_accuracy, best_loss = max(correct, best_accuracy), min(validation, best_loss)
        if progress is not None:
            progress(epoch, epoch if waited == patience else epochs)
        if waited == patience:
            break
    module.load_state_dict(best)
    return module.eval()


@torch.no_grad()
def _evaluate(module: nn.Module, data: Data) -> Tensor:
    out: Tensor = module.eval()(data.x, data.edge_index)
    return out


def accuracy(out: Tensor, y: Tensor, mask: Tensor) -> float:
    """Share of the nodes in `mask` whose largest output is their class."""
    return float((out[mask].argmax(dim=1) == y[mask]).float().mean())


@torch.no_grad()
def _compare(
    title: str,
    eager: nn.Module,
    optimized: OptimizedModule,
    data: Data,
    budget: float,
    progress: Callable[[int, int], None],
) -> DemoResult:
    x, graph = data.x, data.edge_index
    modules: dict[str, nn.Module] = {"eager": eager, "optimized": optimized}
    warm = interleaved_seconds(
        {name: _call(module, x, graph) for name, module in modules.items()},
        budget=budget,
        progress=lambda done, total: progress(done, 2 * total),
    )
    fresh = {name: _FreshCall(module, x, graph) for name, module in modules.items()}
    new = interleaved_seconds(
        {name: call.run for name, call in fresh.items()},
        prepare={name: call.renew for name, call in fresh.items()},
        budget=budget,
        progress=lambda done, total: progress(total + done, 2 * total),
    )
    rows = {
        name: Measured(
            accuracy=accuracy(module(x, graph), data.y, data.test_mask),
            warm=Spread.of(warm[name]),
            new_graph=Spread.of(new[name]),
            peak_bytes=peak_bytes(_call(module, x, graph)),
            parameter_bytes=parameter_bytes(module),
        )
        for name, module in modules.items()
    }
    return DemoResult(
        title=title,
        eager=rows["eager"],
        optimized=rows["optimized"],
        warm_ratio=ratios(warm["eager"], warm["optimized"]),
        new_graph_ratio=ratios(new["eager"], new["optimized"]),
        module=optimized,
    )


def _call(module: nn.Module, x: Tensor, edge_index: Tensor) -> Callable[[], object]:
    return lambda: module(x, edge_index)


class _FreshCall:
    """A call on a graph that is a new tensor with new content each time."""

    def __init__(self, module: nn.Module, x: Tensor, edge_index: Tensor) -> None:
        self._module = module
        self._x = x
        self._graph = edge_index
        self._next = new_graphs(edge_index)

    def renew(self) -> None:
        """Make the next graph; not timed."""
        self._graph = self._next()

    def run(self) -> object:
        """The call that is timed."""
        return self._module(self._x, self._graph)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """The one of `allowed` that `value` names; upper and lower case are the same."""
    for choice in allowed:
        if choice.lower() == value.lower():
            return choice
    raise InputError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        disable=console is None,
        transient=True,
    )


def _device() -> str:
    return f"CPU, {torch.get_num_threads()} threads"


def _milliseconds(spread: Spread) -> str:
    low, median, high = (1e3 * value for value in (spread.q1, spread.median, spread.q3))
    return f"{median:.2f}\n[{low:.2f}, {high:.2f}]"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _kibibytes(count: int) -> str:
    return f"{count / 2**10:.1f}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x\n[{spread.q1:.2f}, {spread.q3:.2f}]"


def _quotient(before: int, after: int) -> str:
    return f"{before / after:.2f}x" if after else "-"
