"""Single layers of PyG beyond the ten models of `run.py`: gnnfx, eager and torch.compile.

    python benchmarks/layers.py
    python benchmarks/layers.py --nodes 2000 --edges 20000 --budget 2      # a first look

One layer on a power-law graph with features or types of edges, or of nodes, calls in interleaved
rounds.  Before it is timed, each answer is compared with eager's: `error` is the greatest
difference over the greatest value.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_geometric.nn as pyg
from environment import RESULTS, TABLE_WIDTH, environment, write
from graphs import EDGE_TYPES, Graph, power_law
from rich.console import Console
from rich.table import Table
from rounds import Timed, clock, interleave, ratios, seconds
from torch import nn
from torch.utils import _pytree as pytree

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


def _with_features(graph: Graph) -> tuple[Any, ...]:
    return graph.x, graph.edge_index, torch.randn(graph.edge_index.shape[1], D)


def _with_types(graph: Graph) -> tuple[Any, ...]:
    return graph.x, graph.edge_index, graph.with_edge_type().edge_type


def _with_positions(graph: Graph) -> tuple[Any, ...]:
    return graph.x, torch.randn(graph.x.shape[0], D), graph.edge_index


def _plain(graph: Graph) -> tuple[Any, ...]:
    return graph.x, graph.edge_index


_NODE_TYPES = ["user", "item"]
_LINKS = [("user", "likes", "item"), ("item", "pleases", "user"), ("user", "knows", "user")]


def _of_types(graph: Graph) -> tuple[Any, ...]:
    """The first half of nodes as users, the second as items, and edges in turn of each type."""
    half = graph.x.shape[0] // 2
    parts = [graph.edge_index[:, place :: len(_LINKS)] % half for place in range(len(_LINKS))]
    return dict(zip(_NODE_TYPES, graph.x[: 2 * half].chunk(2), strict=True)), dict(
        zip(_LINKS, parts, strict=True)
    )


@dataclass(frozen=True)
class Case:
    """A layer, and what it is called with on a graph."""

    make: Callable[[], nn.Module]
    inputs: Callable[[Graph], tuple[Any, ...]] = _with_features


LAYERS: dict[str, Case] = {
    "AGNNConv": Case(pyg.AGNNConv, _plain),
    "CGConv": Case(lambda: pyg.CGConv(C, D)),
    "FastRGCNConv": Case(lambda: pyg.FastRGCNConv(C, C, EDGE_TYPES), _with_types),
    "GATv2Conv": Case(lambda: pyg.GATv2Conv(C, C // 4, heads=4, edge_dim=D)),
    "GENConv": Case(lambda: pyg.GENConv(C, C, edge_dim=D)),
    "HGTConv": Case(lambda: pyg.HGTConv(C, C, (_NODE_TYPES, _LINKS), heads=4), _of_types),
    "NNConv": Case(lambda: pyg.NNConv(C, C // 2, _mlp(D, C * C // 2))),
    "PNAConv": Case(lambda: _pna(1)),
    "PNAConv, 4 towers": Case(lambda: _pna(4)),
    "PointNetConv": Case(lambda: pyg.PointNetConv(_mlp(C + D, C)), _with_positions),
    "ResGatedGraphConv": Case(lambda: pyg.ResGatedGraphConv(C, C, edge_dim=D)),
}


@torch.no_grad()
def measure(name: str, nodes: int, edges: int, budget: float) -> dict[str, Any]:
    """Seconds, ratios to eager and errors of each peer."""
    torch.manual_seed(0)
    case = LAYERS[name]
    example = case.inputs(power_law(nodes, edges, C))
    layer = case.make().eval()
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


def _build(peer: str, layer: nn.Module, example: Any) -> Callable[..., Any]:
    if peer == "eager":
        return layer
    if peer == "compile":
        torch._dynamo.reset()
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        compiled: Callable[..., Any] = torch.compile(copy.deepcopy(layer), dynamic=True)
        return compiled
    policy = peer.removeprefix("gnnfx-")
    return gnnfx.optimize(layer, policy, example, calibration=[example])


def _error(got: Any, wanted: Any) -> float:
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True)
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in pairs)


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
