"""What quantized training costs: seconds of an epoch against float32 training of the same program.

    python benchmarks/qat_cost.py --root data

Full-batch PubMed with GCN, GAT and GIN, and GIN on batches of 128 graphs of REDDIT-BINARY.  All
modules come from `gnnfx.prepare` and train in interleaved rounds; a row gives the median of the
rounds and the quartiles of its ratio to float32 in the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, TABLE_WIDTH, environment, write
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch_geometric.loader import DataLoader

import gnnfx
from gnnfx import graph_qat, qat
from gnnfx.demo import DATA_ROOT, load
from gnnfx.measure import Spread, interleaved_seconds

METHODS: tuple[tuple[qat.Method, int], ...] = (
    ("FP32", 32),
    ("QAT", 8),
    ("DQ", 8),
    ("QAT", 4),
    ("DQ", 4),
)
BATCHES = 4


@dataclass(frozen=True)
class Row:
    """Seconds of an epoch (of some batches, for sets of graphs) and its ratio to float32."""

    workload: str
    method: str
    bits: int
    seconds: Spread
    ratio: Spread


def main() -> None:
    """Parse arguments, measure, write JSON, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of the data sets")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for each workload")
    parser.add_argument("--out", type=Path, default=RESULTS / "qat-cost.json")
    options = parser.parse_args()
    rows = []
    for model in ("GCN", "GAT", "GIN"):
        rows += _measure(f"PubMed {model}", _full_batch(model, options.root), options.budget)
    name = f"REDDIT-BINARY GIN, {BATCHES} batches of 128"
    rows += _measure(name, _batches(options.root), options.budget)
    result = {"environment": environment(), "rows": [asdict(row) for row in rows]}
    write(options.out, result)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(_table(rows))
    console.print(f"written: {options.out}")


def _measure(
    workload: str, epoch_of: Callable[[qat.Method, int], Callable[[], object]], budget: float
) -> list[Row]:
    calls = {f"{method} {bits}": epoch_of(method, bits) for method, bits in METHODS}
    seconds = interleaved_seconds(calls, budget=budget)
    floats = seconds["FP32 32"]
    return [
        Row(
            workload,
            method,
            bits,
            Spread.of(times := seconds[f"{method} {bits}"]),
            Spread.of([mine / base for mine, base in zip(times, floats, strict=True)]),
        )
        for method, bits in METHODS
    ]


def _full_batch(model: str, root: Path) -> Callable[[qat.Method, int], Callable[[], object]]:
    data, classes = load("PubMed", root=root, seed=0, normalize=model != "GIN")
    arguments = (data.x, data.edge_index)

    def epoch_of(method: qat.Method, bits: int) -> Callable[[], object]:
        torch.manual_seed(0)
        built = qat.build(model, data.num_features, classes)
        module = gnnfx.prepare(built, qat.policy(method, bits), arguments).train()
        return _epoch(module, [(arguments, data.y, data.train_mask)])

    return epoch_of


def _batches(root: Path) -> Callable[[qat.Method, int], Callable[[], object]]:
    graphs = graph_qat.load("REDDIT-BINARY", root)
    loader = DataLoader(graphs[: 128 * BATCHES], 128)
    batches = [((b.x, b.edge_index, b.batch), b.y, slice(None)) for b in loader]

    def epoch_of(method: qat.Method, bits: int) -> Callable[[], object]:
        torch.manual_seed(0)
        built = graph_qat.GraphGIN(1, 2)
        module = gnnfx.prepare(built, qat.policy(method, bits), batches[0][0]).train()
        return _epoch(module, batches)

    return epoch_of


def _epoch(module: torch.nn.Module, batches: list[Any]) -> Callable[[], object]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

    def epoch() -> None:
        for arguments, labels, chosen in batches:
            optimizer.zero_grad()
            out = module(*arguments)
            functional.cross_entropy(out[chosen], labels[chosen]).backward()
            optimizer.step()

    return epoch


def _table(rows: list[Row]) -> Table:
    table = Table(title="seconds of a training epoch, median of interleaved rounds")
    table.add_column("workload", no_wrap=True)
    for column in ("method", "bits", "ms", "ratio to float32 (quartiles)"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ratio = f"{row.ratio.median:.2f} ({row.ratio.q1:.2f}-{row.ratio.q3:.2f})"
        milliseconds = f"{1e3 * row.seconds.median:.1f}"
        table.add_row(row.workload, row.method, str(row.bits), milliseconds, ratio)
    return table


if __name__ == "__main__":
    main()
