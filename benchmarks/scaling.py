"""Curves of time over the size of the graph, its degree, the width of features, and threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from compare import Comparison
from graphs import power_law
from peers import PEERS
from workloads import Workload, of

_MODELS = ("gcn", "gat")
_AXES = ("nodes", "degree", "width", "threads")
_PEERS = ("eager", "torch.sparse", "dgl", "gnnfx-fp32", "gnnfx-int8")
_CLASSES = 40
CURVES = tuple((axis, model) for axis in _AXES for model in _MODELS)


def curve(
    axis: str,
    model: str,
    budget: float,
    device: str,
    say: Callable[[str], None],
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Seconds of a warm call of each peer at each point of one axis."""
    points = []
    threads = torch.get_num_threads()
    for value in _values(axis, quick):
        if axis == "threads":
            torch.set_num_threads(value)
        try:
            points.append(
                {"value": value, **_point(_work(axis, model, value), budget, device, say)}
            )
        finally:
            torch.set_num_threads(threads)
    return {"name": f"scaling-{axis}-{model}", "axis": axis, "model": model, "points": points}


def _values(axis: str, quick: bool) -> list[int]:
    if quick:
        return [1_000, 2_000]
    if axis == "threads":
        cores = os.cpu_count() or 1
        return [1 << power for power in range(cores.bit_length()) if 1 << power <= cores]
    return {
        "nodes": [1_000, 4_000, 16_000, 64_000, 256_000],
        "degree": [2, 8, 32, 128],
        "width": [16, 64, 128, 256, 512],
    }[axis]


def _work(axis: str, model: str, value: int) -> Workload:
    nodes, degree, width = 50_000, 16, 128
    if axis == "nodes":
        nodes = value
    elif axis == "degree":
        nodes, degree = 20_000, value
    elif axis == "width":
        width = value
    graph = power_law(nodes, nodes * degree, width)
    return of(f"{axis} {value:,} {model}", model, [graph], width, _CLASSES)


@torch.no_grad()
def _point(
    work: Workload, budget: float, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    comparison = Comparison(work, device, say)
    for name in _PEERS:
        if name in PEERS[device]:
            comparison.set_up(name)
    comparison.time(budget, new_graphs=False)
    timed = {n: r.warm.seconds for n, r in comparison.rows.items() if r.warm is not None}
    found = {name: [t.median, t.q1, t.q3] for name, t in timed.items()}
    return {"nodes": work.nodes, "edges": work.edges, "seconds": found}
