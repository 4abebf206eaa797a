"""Single layers of PyG whose messages depend on edges or gates: gnnfx, eager and torch.compile.

    python benchmarks/layers.py
    python benchmarks/layers.py --nodes 2000 --edges 20000 --budget 2      # a first look

One layer on a power-law graph with features of edges, calls in interleaved rounds.  Before it is
timed, each answer is compared with eager's: `error` is the greatest difference over the greatest
value.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_geometric.nn as pyg
from environment import RESULTS, TABLE_WIDTH, environment, write
from graphs import power_law
from rich.console import Console
from rich.table import Table
from rounds import Timed, clock, interleave, ratios, seconds
from torch import Tensor, nn

import gnnfx

C, D = 64, 8  # channels of nodes and of edges
PEERS = ("eager", "compile", "gnnfx-fp32", "gnnfx-int8")
_DEGREES = torch.bincount(torch.arange(40))
_SCALERS = ["identity", "amplification", "attenuation"]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def _pna(towers: int) -> nn.Module:
    reduces = ["mean", "min", "max", "std"]
    layer: nn.Module = pyg.PNAConv(C, C, reduces, _SCALERS, _DEGREES, edge_dim=D, towers=towers)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "CGConv": lambda: pyg.CGConv(C, D),
    "GATv2Conv": lambda: pyg.GATv2Conv(C, C // 4, heads=4, edge_dim=D),
    "GENConv": lambda: pyg.GENConv(C, C, edge_dim=D),
    "NNConv": lambda: pyg.NNConv(C, C // 2, _mlp(D, C * C // 2)),
    "PNAConv": lambda: _pna(1),
    "PNAConv, 4 towers": lambda: _pna(4),
    "PointNetConv": lambda: pyg.PointNetConv(_mlp(C + D, C)),
    "ResGatedGraphConv": lambda: pyg.ResGatedGraphConv(C, C, edge_dim=D),
}


@torch.no_grad()
def measure(name: str, nodes: int, edges: int, budget: float) -> dict[str, Any]:
    """Seconds, ratios to eager and errors of each peer."""
    graph = power_law(nodes, edges, C)
    points = name == "PointNetConv"  # it knows positions of nodes, not features of edges
    own = (torch.randn(nodes, D), graph.edge_index) if points else (graph.edge_index,)
    example = (graph.x, *own) if points else (graph.x, *own, torch.randn(edges, D))
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    wanted = layer(*example)
    calls, errors = {}, {}
    for peer in PEERS:
        call = partial(_build(peer, layer, example), *example)
        errors[peer] = _error(call(), wanted)
        calls[peer] = Timed(call, clock(call))
    found = interleave(calls, budget)
    rows = {
        peer: {
            "seconds": asdict(seconds(found[peer])),
            "eager over this": asdict(ratios(found["eager"], found[peer])),
            "error": errors[peer],
        }
        for peer in PEERS
    }
    return {"layer": name, "nodes": nodes, "edges": edges, "channels": [C, D], "rows": rows}


def _build(peer: str, layer: nn.Module, example: Any) -> Callable[..., Tensor]:
    if peer == "eager":
        return layer
    if peer == "compile":
        torch._dynamo.reset()
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        compiled: Callable[..., Tensor] = torch.compile(copy.deepcopy(layer), dynamic=True)
        return compiled
    policy = peer.removeprefix("gnnfx-")
    return gnnfx.optimize(layer, policy, example, calibration=[example])


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


def table(results: list[dict[str, Any]]) -> Table:
    """One row a layer: milliseconds, then how many times as fast as eager, and errors."""
    first = results[0]
    shape = f"{first['nodes']:,} nodes, {first['edges']:,} edges, {C} channels, {D} of edges"
    shown = Table(title=f"{shape}; median ms, times eager (quartiles), error")
    shown.add_column("layer", no_wrap=True)
    for peer in PEERS:
        shown.add_column(peer, justify="right", no_wrap=True)
    for result in results:
        shown.add_row(result["layer"], *(_cell(peer, result["rows"][peer]) for peer in PEERS))
    return shown


def _cell(peer: str, row: dict[str, Any]) -> str:
    took, ratio = f"{1e3 * row['seconds']['median']:.1f}", row["eager over this"]
    if peer == "eager":
        return took
    spread = f"{ratio['median']:.1f} ({ratio['q1']:.1f}-{ratio['q3']:.1f})"
    return f"{took}  {spread}  {row['error']:.0e}"


def main() -> None:
    """Measure each layer, write JSON and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", choices=tuple(LAYERS), default=list(LAYERS))
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=400_000)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timing a layer")
    parser.add_argument("--out", type=Path, default=RESULTS / "layers.json")
    options = parser.parse_args()
    results = [
        measure(name, options.nodes, options.edges, options.budget) for name in options.layers
    ]
    write(options.out, {"environment": environment(), "results": results})
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(table(results))
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
