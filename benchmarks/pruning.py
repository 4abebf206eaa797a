"""Accuracy against weight bytes, operations and latency of pruned models: a sweep, resumable.

    python benchmarks/pruning.py --root data --out benchmarks/results/pruning.json
    python benchmarks/pruning.py --quick --root data          # minutes, to see that it works

Each data set, model and seed trains one float model; for each method and ratio `gnnfx.compress`
prunes it by weight norm or by another criterion, either at once or while it trains on, cubically
over half as many epochs (Zhu & Gupta, 2017), fine-tunes what is left with the epoch selected on
validation, and converts it (with --bits 8 or 4, to integers after training with rounding).  Of the
criteria and schedules that were run, those with the best mean validation accuracy are shown.
`dense` trains on for as long as the longest and loses nothing.  Test examples are looked at once,
on what runs.  Data sets of many graphs (GIN alone; BBBP needs rdkit) are split at random into ten
folds of equal shares of classes, and seed s tests on fold s; seeds from 10 on take the same folds
again with other weights.  The JSON file holds every outcome as soon as it is there; a run that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, TABLE_WIDTH, environment, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch_geometric.loader import DataLoader

import gnnfx
from gnnfx import Policy, Prune, Quantize, graph_qat
from gnnfx.compress_commands import train
from gnnfx.demo import DATA_ROOT, load

NODES = ("Cora", "CiteSeer", "PubMed")
GRAPHS = ("PROTEINS", "BBBP")
DATASETS = (*NODES, *GRAPHS)
MODELS = ("GCN", "GAT", "GIN")
METHODS = ("fine-grained", "global", "structured")
CRITERIA = ("l2", "l1", "taylor", "batch-norm", "aggregation")
SCHEDULES = ("cubic", "one-shot")
DENSE = "dense", "l2", "cubic", 0.0
_BATCH = 128
RATIOS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
QUICK: dict[str, Any] = {
    "datasets": ["Cora"],
    "models": ["GCN"],
    "schedules": ["cubic"],
    "ratios": [0.5, 0.9],
    "seeds": 1,
    "epochs": 20,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model pruned in one way.  Accuracies lie between 0 and 1; float weights have 32 bits."""

    dataset: str
    model: str
    method: str
    criterion: str
    schedule: str
    ratio: float
    bits: int
    seed: int
    epochs: int
    validation: float
    test: float
    parameters: int
    nonzero: int
    weight_bytes: int
    flops: int
    latency_ms: float | None

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a run the same run."""
        return (*self.series, *self.recipe, self.ratio, self.seed, self.epochs)

    @property
    def recipe(self) -> tuple[str, str]:
        """What is chosen on validation."""
        return self.criterion, self.schedule

    @property
    def series(self) -> tuple[str, str, str, int]:
        """What one line of the plot has in common."""
        return self.dataset, self.model, self.method, self.bits


@dataclass(frozen=True, slots=True)
class Mean:
    """One series at one ratio, over seeds.  Accuracies in %.

    criterion, schedule: of those that were run, the best in mean validation accuracy.
    difference: to the dense models of the same seeds, in points; None without these.
    """

    dataset: str
    model: str
    method: str
    bits: int
    criterion: str
    schedule: str
    ratio: float
    test: float
    spread: float
    difference: float | None
    weight_bytes: float
    flops: float
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class Trained:
    """A float model, what it was trained on, and how.

    data: a graph, or a loader of `steps` batches; example: arguments of a call.
    training: what `gnnfx.compress` needs to know beside these.
    """

    module: nn.Module
    data: Any
    steps: int
    example: tuple[Any, ...]
    training: dict[str, Any]


def prune(
    trained: Trained, run: tuple[str, str, str, int, str, str, float, int, int], latency: bool
) -> Outcome:
    """Prune a model in one way and evaluate what runs."""
    dataset, model, method, bits, criterion, schedule, ratio, seed, epochs = run
    quantize = None if bits == 32 else Quantize(bits, bits, layers="all")  # type: ignore[arg-type]
    end = trained.steps * epochs // 2 if schedule == "cubic" else 0
    how: dict[str, Any] = {
        "method": "fine-grained" if method == DENSE[0] else method,
        "criterion": criterion,
        "schedule": schedule,
        "end": end,
        "every": max(1, end // 20),
    }
    policy = Policy(prune=Prune(ratio, **how), quantize=quantize)
    example, training = trained.example, trained.training
    found = gnnfx.compress(
        trained.module, policy, trained.data, example_inputs=example, timed=latency, **training
    )
    last = found.report.stages[-1]
    assert last.test is not None
    assert last.weight_bytes is not None
    return Outcome(
        dataset=dataset,
        model=model,
        method=method,
        criterion=criterion,
        schedule=schedule,
        ratio=ratio,
        bits=bits,
        seed=seed,
        epochs=epochs,
        validation=last.validation,
        test=last.test,
        parameters=last.parameters,
        nonzero=last.nonzero,
        weight_bytes=last.weight_bytes,
        flops=last.flops,
        latency_ms=last.latency_ms,
    )


def means(outcomes: Sequence[Outcome]) -> list[Mean]:
    """One entry a series and ratio, in the order of the arguments of the sweep."""
    groups: dict[tuple[tuple[str, str, str, int], float], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.series, o.ratio)):
        groups.setdefault((outcome.series, outcome.ratio), []).append(outcome)
    dense = {_trained_as(o): o.test for o in outcomes if o.method == DENSE[0]}
    found = []
    for (series, ratio), every in groups.items():
        group = _best_recipe(every)
        tests = [100 * o.test for o in group]
        before = [dense.get(_trained_as(o)) for o in group]
        lost = [100 * (o.test - b) for o, b in zip(group, before, strict=True) if b is not None]
        timed = [o.latency_ms for o in group if o.latency_ms is not None]
        found.append(
            Mean(
                *series,
                criterion=group[0].criterion,
                schedule=group[0].schedule,
                ratio=ratio,
                test=statistics.mean(tests),
                spread=statistics.stdev(tests) if len(tests) > 1 else 0.0,
                difference=statistics.mean(lost) if lost else None,
                weight_bytes=statistics.mean(o.weight_bytes for o in group),
                flops=statistics.mean(o.flops for o in group),
                latency_ms=statistics.median(timed) if len(timed) == len(group) else None,
            )
        )
    return found


def _best_recipe(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of one recipe: the best on validation, on average over the same seeds."""
    recipes: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        recipes.setdefault(outcome.recipe, []).append(outcome)
    most = max(len(group) for group in recipes.values())
    complete = (group for group in recipes.values() if len(group) == most)
    return max(complete, key=lambda group: statistics.mean(o.validation for o in group))


def _trained_as(outcome: Outcome) -> tuple[object, ...]:
    return outcome.dataset, outcome.model, outcome.bits, outcome.seed, outcome.epochs


def front(entries: Sequence[Mean], cost: str) -> list[Mean]:
    """The entries that no other beats in accuracy at no more of `cost`, cheapest first."""
    best: list[Mean] = []
    for entry in sorted(entries, key=lambda m: (getattr(m, cost), -m.test)):
        if not best or entry.test > best[-1].test:
            best.append(entry)
    return best


def table(found: Sequence[Mean]) -> Table:
    """One row a series and ratio; a star marks the Pareto front of test accuracy over bytes."""
    out = Table(title="test accuracy in %, mean (standard deviation) over seeds")
    for column in ("dataset", "model", "method", "criterion", "schedule"):
        out.add_column(column, no_wrap=True)
    for column in ("bits", "pruned", "test", "to dense", "bytes", "MFLOP", "ms", "front"):
        out.add_column(column, justify="right", no_wrap=True)
    fronts = [m for panel in _panels(found).values() for m in front(panel, "weight_bytes")]
    for m in found:
        out.add_row(
            *(m.dataset, m.model, m.method, m.criterion, m.schedule, str(m.bits), f"{m.ratio:.0%}"),
            f"{m.test:.2f} ({m.spread:.2f})",
            "" if m.difference is None else f"{m.difference:+.2f}",
            f"{m.weight_bytes:,.0f}",
            f"{m.flops / 1e6:,.2f}",
            "" if m.latency_ms is None else f"{m.latency_ms:.2f}",
            "*" if m in fronts else "",
        )
    return out


def averages(found: Sequence[Mean]) -> Table:
    """The difference to dense of each method and ratio, over data sets and models."""
    out = Table(title="difference to dense in points, mean (least) over data sets and models")
    ratios = sorted({m.ratio for m in found} - {DENSE[-1]})
    for column in ("method", "bits", *(f"{ratio:.0%}" for ratio in ratios)):
        out.add_column(column, justify="left" if column == "method" else "right")
    for method, bits in dict.fromkeys((m.method, m.bits) for m in found if m.method != DENSE[0]):
        cells = []
        for ratio in ratios:
            chosen = [m for m in found if (m.method, m.bits, m.ratio) == (method, bits, ratio)]
            lost = [m.difference for m in chosen if m.difference is not None]
            cells.append(f"{statistics.mean(lost):+.2f} ({min(lost):+.2f})" if lost else "")
        out.add_row(method, str(bits), *cells)
    return out


def plot(found: Sequence[Mean], path: Path) -> None:
    """Accuracy over bytes and, where measured, over latency, for each data set and model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(found)
    timed = all(m.latency_ms is not None for m in found)
    costs = [("weight_bytes", "weight bytes"), *([("latency_ms", "latency, ms")] if timed else [])]
    columns = len(costs) if timed else min(3, len(panels))
    rows = -(-len(panels) * len(costs) // columns)
    size = (6 * columns, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    drawn = itertools.product(panels.items(), costs)
    for axis, (((dataset, model), panel), (cost, label)) in zip(axes.flat, drawn, strict=False):
        for method, bits in dict.fromkeys((m.method, m.bits) for m in panel):
            line = [m for m in panel if (m.method, m.bits) == (method, bits)]
            x, y = [getattr(m, cost) for m in line], [m.test for m in line]
            axis.plot(x, y, "o-", markersize=3, linewidth=1, label=f"{method}, {bits} bits")
        best = front(panel, cost)
        x, y = [getattr(m, cost) for m in best], [m.test for m in best]
        axis.step(x, y, where="post", color="black", alpha=0.3, linewidth=4, label="front")
        axis.set(title=f"{model} on {dataset}", xlabel=label, ylabel="test accuracy, %")
        axis.set_xscale("log")
    for axis in axes.flat[len(panels) * len(costs) :]:
        axis.axis("off")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panels(found: Sequence[Mean]) -> dict[tuple[str, str], list[Mean]]:
    panels: dict[tuple[str, str], list[Mean]] = {}
    for m in found:
        panels.setdefault((m.dataset, m.model), []).append(m)
    return panels


def main() -> None:
    """Parse arguments, run what is missing, write JSON after each model, print and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=["l2"])
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--bits", nargs="+", type=int, choices=(32, 8, 4), default=[32])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=200, help="most epochs of each training")
    parser.add_argument("--no-latency", action="store_true", help="leave out timings")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs and ratios")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of Planetoid's files")
    parser.add_argument("--out", type=Path, default=RESULTS / "pruning.json")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)

    outcomes: list[Outcome] = []
    if options.out.exists():
        outcomes = [Outcome(**o) for o in json.loads(options.out.read_text())["outcomes"]]
    known = {outcome.key for outcome in outcomes}
    runs = [
        (dataset, model, method, bits, criterion, schedule, ratio, seed, options.epochs)
        for dataset in options.datasets
        for model in (options.models if dataset in NODES else ("GIN",))
        for seed in range(options.seeds)
        for bits in options.bits
        for method, criterion, schedule, ratio in (
            DENSE,
            *itertools.product(
                options.methods, options.criteria, options.schedules, options.ratios
            ),
        )
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    trained: dict[tuple[str, str, int], Trained] = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=len(runs))
        for run in runs:
            dataset, model, method, _, criterion, schedule, ratio, seed, _ = run
            what = f"{model} on {dataset}, {method} {criterion} {schedule} {ratio:.0%}, {seed}"
            bars.update(task, description=what)
            if run not in known:
                if (dataset, model, seed) not in trained:
                    make = _on_nodes if dataset in NODES else _on_graphs
                    trained = {(dataset, model, seed): make(options, dataset, model, seed)}
                work = trained[dataset, model, seed]
                outcomes.append(prune(work, run, not options.no_latency))
                result = {"environment": environment(), "outcomes": [asdict(o) for o in outcomes]}
                write(options.out, result)
            bars.advance(task)
    found = means([o for o in outcomes if o.key in set(runs)])
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(table(found))
    console.print(averages(found))
    plot(found, options.out.with_suffix(".png"))
    console.print(f"written: {options.out} and {options.out.with_suffix('.png')}")


def _on_nodes(options: argparse.Namespace, dataset: str, model: str, seed: int) -> Trained:
    """A model for the nodes of one graph; trained models are kept beside the JSON file."""
    data, classes = load(dataset, root=options.root, seed=seed, normalize=model != "GIN")
    rate = 0.005 if model == "GAT" else 0.01
    training = {"epochs": options.epochs, "learning_rate": rate, "seed": seed}
    name = f"{dataset}-{model}-{seed}-{options.epochs}"
    folder = options.out.with_suffix("") / name
    module = train(model, data, classes, training, folder)
    return Trained(module, data, 1, (data.x, data.edge_index), training)


def _on_graphs(options: argparse.Namespace, dataset: str, model: str, seed: int) -> Trained:
    """GIN for classes of graphs."""
    parts = graph_qat.split(
        graph_qat.load(dataset, options.root), seed % graph_qat.FOLDS, "graph-classification"
    )
    torch.manual_seed(seed)
    module = graph_qat.GraphGIN(parts.training[0].num_features, 2)
    data = DataLoader(parts.training, _BATCH, shuffle=True)
    training = {
        "task": "graph-classification",
        "validation": DataLoader(parts.validation, _BATCH),
        "epochs": options.epochs,
        "learning_rate": 0.005,
        "seed": seed,
    }
    batch = next(iter(DataLoader(parts.training, _BATCH)))
    example = (batch.x, batch.edge_index, batch.batch)
    prepared = gnnfx.prepare(module, "fp32", example)
    gnnfx.finetune(prepared, data, **training)
    module.load_state_dict(prepared.state_dict())
    training["test"] = DataLoader(parts.test, _BATCH)
    return Trained(module.eval(), data, len(data), example, training)


if __name__ == "__main__":
    main()
