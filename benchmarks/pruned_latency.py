"""What removing half of the hidden channels is worth: latency and bytes of the same gnnfx policy.

    python benchmarks/pruned_latency.py
    python benchmarks/pruned_latency.py --graph power-law-5k      # seconds, to see that it works

Models of three layers, so that one layer is hidden on both sides: features-hidden-hidden-classes.
Half of the channels of each hidden layer are removed by weight norm (untrained weights: latency
does not depend on their values); calls are interleaved with those of the unpruned module.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_geometric.nn as pyg
from environment import RESULTS, TABLE_WIDTH, environment, write
from graphs import POWER_LAW, power_law
from rich.console import Console
from rich.table import Table
from rounds import Timed, clock, interleave, ratios, seconds
from torch import nn

import gnnfx
from gnnfx import Policy, Prune
from gnnfx.policy import PRESETS

MODELS = {"gcn": pyg.GCN, "sage": pyg.GraphSAGE, "gin": pyg.GIN}
LAYERS = 3
RATIO = 0.5


def build(model: nn.Module, precision: str, pruned: bool, example: Any) -> gnnfx.OptimizedModule:
    """The module of a precision, pruned or not, with ranges observed on the example."""
    prune = Prune(RATIO) if pruned else None
    policy = Policy(quantize=PRESETS[precision].quantize, prune=prune)
    calibration = None if policy.quantize is None else [example]
    return gnnfx.optimize(model, policy, example, calibration=calibration)


@torch.no_grad()
def measure(name: str, graph_name: str, budget: float) -> dict[str, Any]:
    """Seconds and bytes of the four modules of a model, and how they compare."""
    spec = POWER_LAW[graph_name]
    graph = power_law(spec.nodes, spec.edges, spec.features)
    example = (graph.x, graph.edge_index)
    torch.manual_seed(0)
    model = MODELS[name](spec.features, spec.hidden, LAYERS, spec.classes).eval()
    modules = {
        f"{precision}{' pruned' if pruned else ''}": build(model, precision, pruned, example)
        for precision in ("fp32", "int8")
        for pruned in (False, True)
    }
    calls = {}
    for title, module in modules.items():
        call = partial(module, *example)
        call()
        calls[title] = Timed(call, clock(call))
    found = interleave(calls, budget)
    rows = {}
    for title, module in modules.items():
        precision = title.split()[0]
        rows[title] = {
            "seconds": asdict(seconds(found[title])),
            "bytes": module.report.bytes_after,
            "unpruned over this": asdict(ratios(found[precision], found[title])),
            "fp32 over this": asdict(ratios(found["fp32"], found[title])),
            "fp32 bytes over these": modules["fp32"].report.bytes_after / module.report.bytes_after,
        }
    return {
        "model": name,
        "graph": graph_name,
        "channels": [spec.features, spec.hidden, spec.classes],
        "rows": rows,
    }


def table(results: list[dict[str, Any]]) -> Table:
    """One row a model and module."""
    shown = Table(title="half of the hidden channels removed; medians (quartiles)")
    for column in ("model", "module"):
        shown.add_column(column, no_wrap=True)
    for column in ("ms", "faster than unpruned", "faster than fp32", "bytes", "fewer bytes"):
        shown.add_column(column, justify="right", no_wrap=True)
    for result in results:
        for title, row in result["rows"].items():
            spread = [row[k] for k in ("unpruned over this", "fp32 over this")]
            shown.add_row(
                result["model"],
                title,
                f"{1e3 * row['seconds']['median']:.1f}",
                *(f"{s['median']:.2f} ({s['q1']:.2f}-{s['q3']:.2f})" for s in spread),
                f"{row['bytes']:,}",
                f"{row['fp32 bytes over these']:.2f}",
            )
    return shown


def main() -> None:
    """Measure each model, write JSON and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--graph", choices=tuple(POWER_LAW), default="power-law-169k")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timing a model")
    parser.add_argument("--out", type=Path, default=RESULTS / "pruned_latency.json")
    options = parser.parse_args()
    results = [measure(name, options.graph, options.budget) for name in options.models]
    write(options.out, {"environment": environment(), "results": results})
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(table(results))
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
