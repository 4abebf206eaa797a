"""Test accuracy of a GCN on Cora against the share of what was pruned.

    python benchmarks/pruning.py --root data --out benchmarks/results/pruning.json

Each seed trains one model.  For each method and ratio it is pruned at once by weight norm and
trained on with its masks; the epoch with the best validation accuracy counts, and test nodes are
looked at once, at that epoch.  Parameters are those of the model after removal, stored bytes those
of its smallest lossless form.  A run that was interrupted goes on from its JSON file.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from run import RESULTS, TABLE_WIDTH, environment
from torch import nn
from torch_geometric.data import Data

import gnnfx
from gnnfx.demo import DATA_ROOT, accuracy, load, train
from gnnfx.pruning.storage import pack_state, packed_bytes

Method = Literal["fine-grained", "global", "structured"]
METHODS: tuple[Method, ...] = ("fine-grained", "global", "structured")
RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained model pruned in one way.  Accuracies lie between 0 and 1."""

    seed: int
    method: Method
    ratio: float
    validation: float
    test: float
    parameters: int
    nonzero: int
    stored_bytes: int


def prune(
    trained: nn.Module, data: Data, seed: int, method: Method, ratio: float, epochs: int
) -> Outcome:
    """Prune a copy of `trained`, train on, and evaluate at the best validation accuracy."""
    model = copy.deepcopy(trained)
    policy = gnnfx.Prune(ratio=ratio, method=method)
    pruner = gnnfx.Pruner(model, policy, (data.x, data.edge_index))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    pruner.step()
    best, state = -1.0, model.state_dict()
    for epoch in range(epochs + 1):
        if epoch:
            model.train()
            optimizer.zero_grad()
            out = model(data.x, data.edge_index)
            F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
            optimizer.step()
            pruner.step()
        with torch.no_grad():
            out = model.eval()(data.x, data.edge_index)
        if (correct := accuracy(out, data.y, data.val_mask)) > best:
            best, state = correct, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    small = pruner.remove()
    with torch.no_grad():
        out = small(data.x, data.edge_index)
    tensors = small.state_dict()
    return Outcome(
        seed=seed,
        method=method,
        ratio=ratio,
        validation=best,
        test=accuracy(out, data.y, data.test_mask),
        parameters=sum(t.numel() for t in tensors.values()),
        nonzero=sum(int(t.count_nonzero()) for t in tensors.values()),
        stored_bytes=sum(packed_bytes(p) for p in pack_state(tensors).values()),
    )


def table(found: list[Outcome]) -> Table:
    """One row per method and ratio."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in found:
        groups.setdefault((outcome.method, outcome.ratio), []).append(outcome)
    out = Table(title=f"GCN on Cora, {len({o.seed for o in found})} seeds, accuracy in %")
    for column in ("method", "ratio", "validation", "test", "parameters", "non-zero", "bytes"):
        out.add_column(column, justify="left" if column == "method" else "right")
    for (method, ratio), group in groups.items():
        out.add_row(
            method,
            f"{ratio:.0%}",
            f"{100 * statistics.mean(o.validation for o in group):.2f}",
            f"{100 * statistics.mean(o.test for o in group):.2f}",
            f"{statistics.mean(o.parameters for o in group):,.0f}",
            f"{statistics.mean(o.nonzero for o in group):,.0f}",
            f"{statistics.mean(o.stored_bytes for o in group):,.0f}",
        )
    return out


def main() -> None:
    """Parse arguments, run, write JSON after each model, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=200, help="most epochs of dense training")
    parser.add_argument("--tune", type=int, default=100, help="epochs after pruning")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of Planetoid's files")
    parser.add_argument("--out", type=Path, default=RESULTS / "pruning.json")
    options = parser.parse_args()

    found: list[Outcome] = []
    if options.out.exists():
        found = [Outcome(**outcome) for outcome in json.loads(options.out.read_text())["outcomes"]]
    known = {(o.seed, o.method, o.ratio) for o in found}
    data, classes = load("Cora", root=options.root)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        runs = [(method, ratio) for method in options.methods for ratio in options.ratios]
        task = bars.add_task("", total=options.seeds * len(runs))
        for seed in range(options.seeds):
            left = [run for run in runs if (seed, *run) not in known]
            bars.advance(task, len(runs) - len(left))
            if not left:
                continue
            trained = train("GCN", data, classes, dataset="Cora", epochs=options.epochs, seed=seed)
            for method, ratio in left:
                bars.update(task, description=f"{method} {ratio:.0%}, seed {seed}")
                torch.manual_seed(seed)
                found.append(prune(trained, data, seed, method, ratio, options.tune))
                result = {"environment": environment(), "outcomes": [asdict(o) for o in found]}
                options.out.write_text(json.dumps(result, indent=1) + "\n")
                bars.advance(task)
    found.sort(key=lambda o: (METHODS.index(o.method), o.ratio))
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(table(found))
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
