"""Sparse training against train-and-prune: accuracy and training operations side by side.

    python benchmarks/sparse_training.py --root data
    python benchmarks/sparse_training.py --root data --quick      # a minute, to see that it works

The protocol is that of "Towards Sparsification of GNNs" (Peng et al., arXiv:2209.04766):
perceptrons on embeddings that are made once, before training. Link prediction: are two nodes, each
with 8 numbers, connected? 16-128-1. Node classification: 64-256-128-classes. Embeddings come from a
truncated SVD of the normalized adjacency of training edges (links), or from a PCA of features that
two steps of aggregation were joined to (nodes), so messages are passed before training alone.

Train-and-prune (ADMM, SLR) trains densely, then pulled towards sparse weights, then masked; SET and
RigL train sparsely all along, `dense` densely. Each method has the same number of epochs. Models
are selected on validation among epochs that are as sparse as the result. Operations follow RigL's
accounting (3 forward passes a step, and a dense gradient where RigL moves weights). Accuracy is
that on test nodes, or on test pairs of which half are edges.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from environment import RESULTS, TABLE_WIDTH, environment, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.datasets import Coauthor, LINKXDataset
from torch_geometric.utils import scatter, to_undirected

import gnnfx
from gnnfx.demo import DATA_ROOT
from gnnfx.pruning.flops import dense_training, sparse_training, train_and_prune
from gnnfx.pruning.masks import keeper_of_zeros
from gnnfx.tasks import sample_absent_pairs

LINKS = ("email-Enron", "email-Eu-core-temporal", "CollegeMsg")
NODES = ("Physics", "Cornell5")
METHODS = ("dense", "ADMM", "SLR", "SET", "RigL")
SPARSITIES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
# Dense, pulled and masked epochs of train-and-prune; the others train for their sum.
EPOCHS = {"link": (20, 10, 10), "node": (40, 20, 20)}
BATCH, EVERY = {"link": 512, "node": 256}, 100
RATE = {"link": 2e-3, "node": 1e-3}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained model.  Accuracies lie between 0 and 1; `flops` are those of its training."""

    dataset: str
    method: str
    sparsity: float
    seed: int
    validation: float
    test: float
    flops: float
    nonzero: int

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a run the same run."""
        return self.dataset, self.method, self.sparsity, self.seed


@dataclass(frozen=True, slots=True)
class Part:
    """Rows to learn from or to be judged on: `x` [R, F] and `y` [R], classes as int64."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """A data set as rows of embeddings; `kind` is 'link' or 'node'."""

    kind: str
    training: Part
    validation: Part
    test: Part
    classes: int


def load(name: str, root: Path, seed: int) -> Problem:
    """The problem of a data set, split at random (or, where edges are timed, by time)."""
    torch.manual_seed(seed)
    return _links(name, root) if name in LINKS else _nodes(name, root)


def _links(name: str, root: Path) -> Problem:
    if name == "email-Enron":
        file = np.load(root / "EdgeLists" / name / "raw" / "email_enron_undirected.npz")
        edges, nodes = torch.from_numpy(file["edge_index"]).long(), int(file["num_nodes"])
        edges = edges[:, torch.randperm(edges.shape[1])]
    else:
        timed = np.loadtxt(root / "TemporalEdges" / name / "raw" / f"{name}.txt.gz", dtype=np.int64)
        timed = timed[np.argsort(timed[:, 2], kind="stable")]
        ids, ends = np.unique(timed[:, :2], return_inverse=True)
        pairs, nodes = np.sort(ends.reshape(-1, 2), axis=1), len(ids)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        _, first = np.unique(pairs, axis=0, return_index=True)  # when a pair was first in touch
        edges = torch.from_numpy(pairs[np.sort(first)].T.copy())
    marks = [int(share * edges.shape[1]) for share in (0.7, 0.85)]
    known = to_undirected(edges, num_nodes=nodes)
    embedding = _spectral(edges[:, : marks[0]], nodes)

    def part(first: int, last: int) -> Part:
        there = edges[:, first:last]
        there = torch.where(torch.rand(there.shape[1]) < 0.5, there, there.flip(0))
        absent = sample_absent_pairs(known, there.shape[1], nodes)
        pairs = torch.cat([there, absent], 1)
        y = (torch.arange(pairs.shape[1]) < there.shape[1]).long()
        return Part(torch.cat([embedding[pairs[0]], embedding[pairs[1]]], 1), y)

    return Problem("link", part(0, marks[0]), part(*marks), part(marks[1], edges.shape[1]), 2)


def _spectral(edges: Tensor, nodes: int, width: int = 8) -> Tensor:
    """Node embeddings [N, width] from the training edges alone, with unit variance."""
    both = to_undirected(edges, num_nodes=nodes)
    degree = torch.bincount(both[0], minlength=nodes).clamp(min=1).float()
    weight = (degree[both[0]] * degree[both[1]]).rsqrt()
    adjacency = torch.sparse_coo_tensor(both, weight, (nodes, nodes)).coalesce()
    u, s, _ = torch.svd_lowrank(adjacency, q=width, niter=8)
    # Without the degrees that the normalization took out, hubs could not be told from others.
    x = u * s * degree[:, None].sqrt()
    return _standardized(x.sign() * (1 + x.abs()).log())


def _standardized(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


def _nodes(name: str, root: Path) -> Problem:
    dataset = (
        Coauthor(str(root / "Coauthor"), "Physics")
        if name == "Physics"
        else LINKXDataset(str(root / "LINKXDataset"), "cornell5")
    )
    data = dataset[0]
    u, s, _ = torch.pca_lowrank(data.x, q=64)
    src, dst = data.edge_index
    steps = [u * s]
    for _ in range(2):
        steps.append(scatter(steps[-1][src], dst, dim_size=data.num_nodes, reduce="mean"))
    u, s, _ = torch.pca_lowrank(torch.cat(steps, 1), q=64)
    x = _standardized(u * s)
    labelled = torch.nonzero(data.y >= 0)[:, 0]
    order = labelled[torch.randperm(len(labelled))]
    ends = [int(share * len(order)) for share in (0.6, 0.8)]
    training, validation, test = (Part(x[r], data.y[r]) for r in order.tensor_split(ends))
    return Problem("node", training, validation, test, int(data.y.max()) + 1)


def build(problem: Problem) -> nn.Sequential:
    """The networks of the paper."""
    inputs = problem.training.x.shape[1]
    if problem.kind == "link":
        return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 2))
    widths = [inputs, 256, 128]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.Dropout(0.1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, problem.classes, bias=False))


class Training:
    """Trains one model; the same for every method but for what a method adds."""

    def __init__(self, problem: Problem, epochs: int) -> None:
        self.problem = problem
        self.model = build(problem)
        self.weights = {n: p for n, p in self.model.named_parameters() if p.dim() == 2}
        self.steps_an_epoch = math.ceil(len(problem.training.y) / BATCH[problem.kind])
        self.total = epochs * self.steps_an_epoch
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE[problem.kind])
        self.best = (-1.0, 0.0)

    def run(
        self,
        epochs: int,
        *,
        judged: bool,
        penalty: Callable[[], Tensor] | None = None,
        after_step: Callable[[], None] | None = None,
        after_epoch: Callable[[float], None] | None = None,
    ) -> None:
        """Some epochs, the rate falling with a cosine; `judged`: the best one is remembered."""
        part, batch = self.problem.training, BATCH[self.problem.kind]
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = RATE[self.problem.kind]
        steps = epochs * self.steps_an_epoch
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        for _ in range(epochs):
            self.model.train()
            total = 0.0
            for rows in torch.randperm(len(part.y)).split(batch):
                loss = functional.cross_entropy(self.model(part.x[rows]), part.y[rows])
                (loss if penalty is None else loss + penalty()).backward()
                self.optimizer.step()
                rates.step()
                if after_step is not None:
                    after_step()
                self.optimizer.zero_grad()
                total += float(loss.detach()) * len(rows)
            if after_epoch is not None:
                after_epoch(total / len(part.y))
            if judged:
                found = self.accuracy(self.problem.validation), self.accuracy(self.problem.test)
                self.best = max(self.best, found, key=lambda pair: pair[0])

    @torch.no_grad()
    def accuracy(self, part: Part) -> float:
        """Share of right answers."""
        self.model.eval()
        return float((self.model(part.x).argmax(1) == part.y).float().mean())

    def flops(self) -> int:
        """Operations of a forward pass of one batch, zero weights left out."""
        example = (self.problem.training.x[: BATCH[self.problem.kind]],)
        prune = gnnfx.Prune(ratio=0.0, method="fine-grained")
        return gnnfx.Pruner(self.model.eval(), prune, example).flops().total


def train(
    problem: Problem, method: str, sparsity: float, seed: int, shrink: int = 1
) -> tuple[float, float, float, int]:
    """Validation and test accuracy, operations of training, and weights that are not zero."""
    phases = tuple(max(1, n // shrink) for n in EPOCHS[problem.kind])
    torch.manual_seed(seed)
    training = Training(problem, sum(phases))
    dense, weights = training.flops(), training.weights
    steps = training.total
    if method == "dense":
        training.run(sum(phases), judged=True)
        spent = dense_training(dense, steps)
    elif method in ("ADMM", "SLR"):
        training.run(phases[0], judged=False)
        pull = (gnnfx.Admm if method == "ADMM" else gnnfx.Slr)(weights, sparsity)
        training.run(phases[1], judged=False, penalty=pull.penalty, after_epoch=pull.step)
        pull.prune()
        training.run(phases[2], judged=True, after_step=keeper_of_zeros(weights))
        sparse_steps = phases[2] * training.steps_an_epoch
        spent = train_and_prune(training.flops(), dense, steps - sparse_steps, sparse_steps)
    else:
        growth: Literal["gradient", "random"] = "gradient" if method == "RigL" else "random"
        end = int(0.75 * steps)
        sparse = gnnfx.SparseTraining(
            weights,
            training.optimizer,
            1 - sparsity,
            end=end,
            every=EVERY,
            growth=growth,
            seed=seed,
        )
        training.run(sum(phases), judged=True, after_step=sparse.step)
        spent = sparse_training(training.flops(), dense, steps, EVERY, growth)
    nonzero = sum(int((w != 0).sum()) for w in weights.values())
    return *training.best, spent, nonzero


def table(outcomes: list[Outcome]) -> Table:
    """One row a data set and sparsity: accuracy and operations of each method."""
    result = Table(
        title="test accuracy in %, and operations of training as a share of dense training's",
        caption="mean (standard deviation) over seeds",
    )
    for column in ("dataset", "zeros", *METHODS):
        result.add_column(column, justify="left" if column == "dataset" else "right", no_wrap=True)
    groups: dict[tuple[str, float], dict[str, list[Outcome]]] = {}
    for o in outcomes:
        groups.setdefault((o.dataset, o.sparsity), {}).setdefault(o.method, []).append(o)
    dense = {o.dataset: o.flops for o in outcomes if o.method == "dense"}
    for (dataset, sparsity), methods in sorted(groups.items()):
        cells = []
        for method in METHODS:
            found = methods.get(method, [])
            if not found:
                cells.append("")
                continue
            tests = [100 * o.test for o in found]
            spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
            share = statistics.mean(o.flops for o in found) / dense.get(dataset, math.nan)
            cells.append(f"{statistics.mean(tests):.2f} ({spread:.2f}) {share:.3f}")
        result.add_row(dataset, f"{sparsity:.0%}", *cells)
    return result


def main() -> None:
    """Parse arguments, run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*LINKS, *NODES)
    parser.add_argument("--datasets", nargs="+", choices=names, default=list(names))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--quick", action="store_true", help="one small set, one seed, few epochs")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS / "sparse_training.json")
    options = parser.parse_args()
    shrink = 1
    if options.quick:
        quick = {"datasets": ["CollegeMsg"], "sparsities": [0.9], "seeds": 1, "out": None}
        vars(options).update(quick)
        shrink = 5
    outcomes: list[Outcome] = []
    if options.out is not None and options.out.exists():
        outcomes = [Outcome(**o) for o in json.loads(options.out.read_text())["outcomes"]]
    known = {outcome.key for outcome in outcomes}
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("", total=len(options.datasets) * options.seeds)
        for dataset in options.datasets:
            for seed in range(options.seeds):
                bars.update(task, description=f"{dataset}, seed {seed}")
                wanted = [
                    (dataset, method, sparsity, seed)
                    for method in options.methods
                    for sparsity in ([0.0] if method == "dense" else options.sparsities)
                ]
                missing = [key for key in wanted if key not in known]
                problem = load(dataset, options.root, seed) if missing else None
                for key in missing:
                    assert problem is not None
                    found = train(problem, key[1], key[2], seed, shrink)
                    outcomes.append(Outcome(*key, *found))
                if missing and options.out is not None:
                    result = {"environment": environment(), "outcomes": [*map(asdict, outcomes)]}
                    write(options.out, result)
                bars.advance(task)
    shown = Console(width=max(Console().width, TABLE_WIDTH))
    shown.print(table(outcomes))


if __name__ == "__main__":
    main()
