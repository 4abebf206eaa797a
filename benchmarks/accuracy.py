"""Test accuracy of trained models before and after `gnnfx.optimize`.

    python benchmarks/accuracy.py --root data --out benchmarks/results/accuracy.json

Each model is trained once per seed in float32 and then optimized under every policy, calibrated on
the graph it was trained on.  The table shows mean and standard deviation of the test accuracy over
seeds, and the drop of the mean against eager.  For policy `fp32` it also shows whether every
prediction equals eager's, and the largest difference relative to the largest output.  A run that
was interrupted goes on from its JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from environment import RESULTS, TABLE_WIDTH, environment, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import gnnfx
from gnnfx.demo import DATA_ROOT, accuracy, load, train

DATASETS = ("Cora", "CiteSeer", "PubMed")
MODELS = ("GCN", "SAGE", "GIN", "GAT")
POLICIES = ("fp32", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained model under one policy.  Accuracies lie between 0 and 1."""

    dataset: str
    model: str
    seed: int
    policy: str
    eager_accuracy: float
    accuracy: float
    same_argmax: float
    relative_difference: float
    optimize_seconds: float


def outcomes(
    dataset: str, model: str, seed: int, policies: list[str], root: Path, epochs: int
) -> list[Outcome]:
    """Train once, optimize under each policy, and evaluate on the test nodes."""
    data, classes = load(dataset, root=root, seed=seed)
    trained = train(model, data, classes, dataset=dataset, epochs=epochs, seed=seed)
    arguments = (data.x, data.edge_index)
    with torch.no_grad():
        expected = trained(*arguments)
    found = []
    for policy in policies:
        start = time.perf_counter()
        module = gnnfx.optimize(trained, policy, arguments, calibration=[arguments])
        seconds = time.perf_counter() - start
        with torch.no_grad():
            out = module(*arguments)
        found.append(
            Outcome(
                dataset=dataset,
                model=model,
                seed=seed,
                policy=policy,
                eager_accuracy=accuracy(expected, data.y, data.test_mask),
                accuracy=accuracy(out, data.y, data.test_mask),
                same_argmax=float((out.argmax(1) == expected.argmax(1)).float().mean()),
                relative_difference=float((out - expected).abs().max() / expected.abs().max()),
                optimize_seconds=seconds,
            )
        )
    return found


def table(found: list[Outcome]) -> Table:
    """One row per dataset, model and policy."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in found:
        key = (outcome.dataset, outcome.model, outcome.policy)
        groups.setdefault(key, []).append(outcome)
    seeds = len({outcome.seed for outcome in found})
    out = Table(
        title=f"test accuracy in %, {seeds} seeds",
        caption="mean (standard deviation); drop in points; difference relative to the output",
    )
    for column in ("dataset", "model", "policy"):
        out.add_column(column, no_wrap=True)
    for column in ("eager", "optimized", "drop", "same argmax", "max difference", "optimize s"):
        out.add_column(column, justify="right", no_wrap=True)
    for (dataset, model, policy), group in groups.items():
        eager = [100 * outcome.eager_accuracy for outcome in group]
        after = [100 * outcome.accuracy for outcome in group]
        out.add_row(
            dataset,
            model,
            policy,
            _mean(eager),
            _mean(after),
            f"{statistics.mean(eager) - statistics.mean(after):+.2f}",
            f"{100 * min(outcome.same_argmax for outcome in group):.2f} %",
            f"{max(outcome.relative_difference for outcome in group):.1e}",
            f"{statistics.median(outcome.optimize_seconds for outcome in group):.2f}",
            end_section=policy == group[-1].policy == found[-1].policy,
        )
    return out


def _mean(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ({spread:.2f})"


def _finished(path: Path) -> list[Outcome]:
    """Outcomes that an earlier, interrupted run has written."""
    if not path.exists():
        return []
    return [Outcome(**outcome) for outcome in json.loads(path.read_text())["outcomes"]]


def main() -> None:
    """Parse arguments, run, write JSON after each model, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=200, help="most epochs to train")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of Planetoid's files")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.json")
    options = parser.parse_args()

    found = _finished(options.out)
    known = {(o.dataset, o.model, o.seed) for o in found}
    runs = [
        (dataset, model, seed)
        for dataset in options.datasets
        for model in options.models
        for seed in range(options.seeds)
        if (dataset, model, seed) not in known
    ]
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=len(runs))
        for dataset, model, seed in runs:
            bars.update(task, description=f"{model} on {dataset}, seed {seed}")
            found += outcomes(dataset, model, seed, options.policies, options.root, options.epochs)
            result = {"environment": environment(), "outcomes": [asdict(o) for o in found]}
            write(options.out, result)
            bars.advance(task)
    found.sort(key=lambda o: (DATASETS.index(o.dataset), MODELS.index(o.model)))
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(table(found))
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
