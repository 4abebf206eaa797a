"""Quantized training on data sets of many graphs: classes in folds, regression in random splits.

REDDIT-BINARY follows Degree-Quant (Tailor et al., ICLR 2021) as its code runs: GIN of five layers,
of which the first reads its few features in float32, node features from degrees, a learning rate
that is halved every 50 epochs, ten stratified folds of which the one before the test fold
validates, weights of the epoch with the lowest loss on validation.  But plain training for INT4 has
the learning rate of Degree-Quant here, too, which does it more good than the 0.05 given there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.datasets import MoleculeNet, TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MLP, GINConv, global_mean_pool
from torch_geometric.utils import degree

from gnnfx.backend.prepared import PreparedModule
from gnnfx.demo import DATA_ROOT
from gnnfx.errors import InputError
from gnnfx.finetune import finetune
from gnnfx.policy import Policy
from gnnfx.prepare import prepare
from gnnfx.qat import (
    AFTER_TRAINING,
    EXECUTED,
    QUICK_EPOCHS,
    Method,
    Outcome,
    append,
    executed,
    policy,
    read,
    runs,
)

CLASSES = ("REDDIT-BINARY", "PROTEINS", "BBBP")
NUMBERS = ("ESOL", "Lipophilicity")
_MOLECULES = {"BBBP": "BBBP", "ESOL": "ESOL", "Lipophilicity": "Lipo"}
DATASETS = (*CLASSES, *NUMBERS)
FOLDS = 10
_BATCH = 128
_QUICK_GRAPHS = 200


@dataclass(frozen=True)
class Split:
    """The graphs of one fold."""

    training: list[Data]
    validation: list[Data]
    test: list[Data]


def run(
    dataset: str,
    *,
    methods: Sequence[Method] = EXECUTED,
    bits: Sequence[int] = (8,),
    folds: int = FOLDS,
    epochs: int = 200,
    quick: bool = False,
    root: Path = DATA_ROOT,
    out: Path | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Train GIN by each method and width on the first `folds` folds, which outcomes call seeds.

    The arguments are those of `gnnfx.qat.run`; `quick` also takes few graphs.
    Raises InputError for an unknown data set and for numbers of folds that there are not.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
    if not 1 <= folds <= FOLDS:
        raise InputError(f"folds must lie between 1 and {FOLDS}, got {folds}")
    graphs = load(dataset, root)
    if quick:
        folds, epochs = 1, min(epochs, QUICK_EPOCHS)
        order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0))
        graphs = [graphs[i] for i in order[:_QUICK_GRAPHS]]
    task: GraphTask = "graph-regression" if dataset in NUMBERS else "graph-classification"
    known = {outcome.key: outcome for outcome in read(out)}
    found = []
    for fold in range(folds):
        trainer = _Trainer(split(graphs, fold, task), task, fold, epochs, console)
        for method, width in runs(methods, bits):
            key = (dataset, "GIN", method, width, fold, epochs)
            if key not in known:
                if console is not None:
                    console.print(f"GIN on {dataset}, {method}, {width} bits, fold {fold}")
                known[key] = Outcome(*key, *trainer.train(method, width))
                if not quick:
                    append(out, known[key])
            found.append(known[key])
    return found


GraphTask = Literal["graph-classification", "graph-regression"]


def load(dataset: str, root: Path) -> list[Data]:
    """The graphs of a data set, with float `x` [N, C]; `y` holds classes or numbers.

    Raises InputError if `root` does not hold them and they cannot be downloaded.
    """
    try:
        if dataset in _MOLECULES:
            loaded = MoleculeNet(str(root / "MoleculeNet"), _MOLECULES[dataset])
        else:
            loaded = TUDataset(str(root / "TUDataset"), dataset)
    except (OSError, ImportError) as error:
        raise InputError(f"root={root} does not give dataset {dataset!r}: {error}") from error
    graphs = [graph.clone() for graph in loaded]
    for graph in graphs:
        if graph.x is None:
            graph.x = degree(graph.edge_index[1], graph.num_nodes)[:, None]
    x = torch.cat([graph.x for graph in graphs]).float()
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    plain = dataset == "PROTEINS"  # its features are one-hot
    kept = []
    for graph in graphs:
        features = graph.x.float() if plain else (graph.x.float() - mean) / deviation
        y = graph.y if dataset in NUMBERS else graph.y.view(-1).long()
        kept.append(Data(x=features, edge_index=graph.edge_index, y=y))
    return kept


def split(graphs: list[Data], fold: int, task: GraphTask) -> Split:
    """Ten parts, in which classes are as frequent as in the whole; two of them judge.

    Raises InputError where scikit-learn, which draws the folds of the paper's code, is missing.
    """
    try:
        from sklearn.model_selection import KFold, StratifiedKFold
    except ImportError as error:
        raise InputError(
            "folds are scikit-learn's, which is not installed: install gnnfx[demo]"
        ) from error
    kind = StratifiedKFold if task == "graph-classification" else KFold
    folds = kind(FOLDS, shuffle=True, random_state=12345)
    labels = [float(graph.y) for graph in graphs]
    parts = [[graphs[i] for i in indices] for _, indices in folds.split(labels, labels)]
    training = [graph for i in range(2, FOLDS) for graph in parts[(fold - i) % FOLDS]]
    return Split(training, parts[fold - 1], parts[fold])


class _Trainer:
    """One fold; float training is done once for all that need it."""

    def __init__(
        self, parts: Split, task: GraphTask, seed: int, epochs: int, console: Console | None
    ) -> None:
        self._parts, self._task, self._seed, self._epochs = parts, task, seed, epochs
        self._console = console
        self._regression = task == "graph-regression"
        batches = DataLoader(parts.training, _BATCH)
        self._calls = [(batch.x, batch.edge_index, batch.batch) for batch in batches]
        self._float: tuple[PreparedModule, int] | None = None

    def train(self, method: Method, bits: int) -> tuple[int, float, float]:
        """Best epoch, validation and test: accuracy, or the root mean squared error."""
        if method in AFTER_TRAINING:
            self._float = self._float or self._finetune("FP32", 32)
            prepared, best = self._float
        else:
            prepared, best = self._finetune(method, bits)
        skip = GraphGIN.FLOAT
        final = executed(prepared, method, bits, self._build, self._calls, skip)
        parts = (self._parts.validation, self._parts.test)
        validation, test = (_score(final, graphs, self._regression) for graphs in parts)
        return best, validation, test

    def _build(self) -> nn.Module:
        graphs = self._parts.training
        outputs = 1 if self._regression else 1 + max(int(g.y) for g in graphs)
        return GraphGIN(graphs[0].num_features, outputs)

    def _finetune(self, method: Method, bits: int) -> tuple[PreparedModule, int]:
        torch.manual_seed(self._seed)
        prepared = prepare(self._build(), _policy(method, bits), self._calls[0])
        rate, decay = (0.005, 2e-4) if bits >= 8 else (0.001, 4e-5)
        optimizer = torch.optim.Adam(prepared.parameters(), lr=rate, weight_decay=decay)
        halved = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.5)
        history = finetune(
            prepared,
            DataLoader(self._parts.training, _BATCH, shuffle=True),
            task=self._task,
            validation=DataLoader(self._parts.validation, _BATCH),
            epochs=self._epochs,
            seed=self._seed,
            keep="lowest-loss",
            optimizer=optimizer,
            after_epoch=lambda loss: halved.step(),
            console=self._console,
        )
        return prepared, history.best.epoch


def _policy(method: Method, bits: int) -> Policy:
    """That of `gnnfx qat`, with the range that the authors' code has for INT4."""
    chosen = replace(policy(method, bits), skip=GraphGIN.FLOAT)
    if chosen.quantize is None or bits != 4 or not method.startswith("DQ"):
        return chosen
    training = replace(chosen.quantize.training, percentile=0.99)
    return replace(chosen, quantize=replace(chosen.quantize, training=training))


@torch.no_grad()
def _score(module: nn.Module, graphs: list[Data], regression: bool) -> float:
    total, count = 0.0, 0
    for batch in DataLoader(graphs, _BATCH):
        out = module(batch.x, batch.edge_index, batch.batch)
        if regression:
            total += float((out - batch.y.view_as(out)).square().sum())
        else:
            total += float((out.argmax(1) == batch.y).sum())
        count += len(out)
    return (total / count) ** 0.5 if regression else total / count


class GraphGIN(nn.Module):
    """GIN of Degree-Quant's runs on REDDIT-BINARY: five layers, 64 wide, mean pooling.

    FLOAT: the modules that stay float32.
    """

    FLOAT: ClassVar = ("convs.0.aggr_module", "convs.0.nn.lins.0")

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        widths: list[Any] = [features, 64, 64, 64, 64]
        self.convs = nn.ModuleList(
            GINConv(MLP([width, 64, 64], norm=None), train_eps=True) for width in widths
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in widths)
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, outputs)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x, edge_index).relu())
        x = self.first(global_mean_pool(x, batch)).relu()
        out: Tensor = self.last(functional.dropout(x, 0.5, self.training))
        return out
