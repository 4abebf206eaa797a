"""How long single calls on small graphs take: half of them, and all but one in a hundred."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare import Comparison
from graphs import Graph, molecules
from peers import PEERS, Peer
from rounds import clock
from workloads import MOLECULES, Workload, make, of

_MODELS = ("gcn", "gat", "gine")
_PEERS = ("eager", "compile", "torch.sparse", "dgl", "gnnfx-fp32", "gnnfx-int8")
_MOLECULES = 200
_MOST_CALLS = 2_000
_CALLS_A_TURN = 5
LATENCIES = tuple((graph, model) for graph in ("molecule", "cora") for model in _MODELS)


@torch.no_grad()
def latency(
    graph: str,
    model: str,
    root: Path,
    budget: float,
    device: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Percentiles of the seconds of a call: one molecule after the other, or Cora again and again.

    What a peer makes of a molecule before it computes is part of the call.
    """
    work = _work(graph, model, root).to(device)
    comparison = Comparison(work, device, say)
    for name in _PEERS:
        if name in PEERS[device]:
            comparison.set_up(name)
    say(f"{graph} {model}: latency")
    found = _sample(work, comparison, budget, device)
    rows = {name: _percentiles(sample) for name, sample in found.items()}
    return {"name": f"latency-{graph}-{model}", "graph": graph, "model": model, "rows": rows}


def _work(graph: str, model: str, root: Path) -> Workload:
    if graph == "cora":
        return make(f"cora-{model}", root)
    features, hidden, classes = MOLECULES
    single = molecules(features, graphs=1, batches=_MOLECULES)
    return of(f"molecule-{model}", model, single, hidden, classes)


def _sample(
    work: Workload, comparison: Comparison, budget: float, device: str
) -> dict[str, list[float]]:
    """Seconds of calls, the peers taking turns; of the calls in a turn the first is not timed.

    Who comes next is drawn anew each time, since threads of a peer may still spin for a while.
    """
    order = list(comparison.peers.items())
    shuffle = random.Random(0).shuffle
    found: dict[str, list[float]] = {name: [] for name in comparison.peers}
    known = {name: peer.prepare(work.graph) for name, peer in comparison.peers.items()}
    warmup = len(work.graphs) if len(work.graphs) > 1 else 20
    stop = time.perf_counter() + budget
    single = len(work.graphs) == 1
    for turn in range(-warmup, _MOST_CALLS, _CALLS_A_TURN):
        shuffle(order)
        for name, peer in order:
            for number in range(turn - 1, turn + _CALLS_A_TURN):
                graph = work.graphs[number % len(work.graphs)]
                call = partial(peer.call, known[name]) if single else partial(_whole, peer, graph)
                spent = clock(call, device)
                if turn >= 0 and number >= turn:
                    found[name].append(spent)
        if turn >= 10 and time.perf_counter() > stop:
            break
    return found


def _whole(peer: Peer, graph: Graph) -> object:
    return peer.call(peer.prepare(graph))


def _percentiles(sample: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(sample, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "calls": len(sample)}
