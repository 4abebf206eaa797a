"""All peers on one workload: the same answer first, then seconds, ratios and peak memory."""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from achieved import op_times
from graphs import Graph
from limits import Limits
from memory import available_bytes, estimated_bytes, needs_estimate
from peers import EXACT_TOLERANCE, PEERS, Peer, Unavailable
from rounds import Rounds, Timed, clock, interleave, ratios, seconds
from torch import Tensor
from workloads import Workload

from gnnfx.measure import Spread, peak_bytes

_DETAILED = ("gnnfx-fp32", "gnnfx-int8")
# A call that takes longer is not repeated where one does.
_LONG = 1.0


@dataclass(slots=True)
class Timing:
    """Seconds of a call; eager's time, and that of the best peer, over this peer's."""

    seconds: Spread
    to_eager: Spread | None = None
    to_best: Spread | None = None


@dataclass(slots=True)
class Row:
    """What is known of one peer on one workload."""

    peer: str
    note: str
    status: str = "ok"
    relative_difference: float | None = None
    same_argmax: float | None = None
    warm: Timing | None = None
    new: Timing | None = None
    peak_bytes: int | None = None
    estimated_bytes: int | None = None
    setup_seconds: float | None = None
    extra: dict[str, object] = field(default_factory=dict)


class Comparison:
    """The peers of one workload that run, with what was found of each."""

    def __init__(self, work: Workload, device: str, say: Callable[[str], None]) -> None:
        self.work = work.to(device)
        self.device = device
        self.rows: dict[str, Row] = {}
        self.peers: dict[str, Peer] = {}
        self._say = say
        self._known: dict[str, float] = {}
        self._expected: dict[int, Tensor] = {}
        self._small: Workload | None = None
        if needs_estimate(work, device):
            self._small = self.work.shrunk().to(device)
            self.work = replace(self.work, small=self._small.graph)

    def set_up(self, name: str) -> None:
        """Make a peer, compare its answer with eager's, and measure its memory."""
        row = self.rows[name] = Row(name, "")
        self._say(f"{self.work.name}: set up {name}")
        with _failures(row):
            make = PEERS[self.device][name]
            if self._small is not None and self._is_too_large(row, make, self._small):
                return
            start = time.perf_counter()
            peer = make(self.work)
            row.setup_seconds = time.perf_counter() - start
            row.note, row.extra = peer.note, dict(peer.extra or {})
            self._run_once(peer, row)
            if not peer.exact:
                row.status = "approximate"
            elif not (row.relative_difference or 0.0) <= EXACT_TOLERANCE:
                row.status = "other answer"
            self.peers[name] = peer

    def time(self, budget: float, *, new_graphs: bool = True) -> dict[str, Any]:
        """Fill in the timings; how many rounds there were, and which peer was the best."""
        warm = {} if self.work.always_new else self._time("warm", budget, list(self.peers))
        new: dict[str, Rounds] = {}
        if new_graphs:
            # Where a peer remembers nothing, a new graph is timed no second time.
            kept = [n for n, p in self.peers.items() if p.remembers or n not in warm]
            new = {**warm, **self._time("new", budget, kept)}
        best: dict[str, str | None] = {}
        for kind, found in (("warm", warm), ("new", new)):
            exact = {n: seconds(r).median for n, r in found.items() if self._may_be_best(n)}
            best[kind] = min(exact, key=exact.__getitem__) if exact else None
            for name, rounds in found.items():
                timing = Timing(seconds(rounds))
                if "eager" in found:
                    timing.to_eager = ratios(found["eager"], rounds)
                if best[kind] is not None:
                    timing.to_best = ratios(found[str(best[kind])], rounds)
                setattr(self.rows[name], kind, timing)
        counts = {"warm": warm, "new": new}
        most = {kind: max(map(len, found.values()), default=0) for kind, found in counts.items()}
        return {"rounds": most, "best": best}

    def against_limits(self) -> dict[str, Any]:
        """Each op of gnnfx's programs against the machine's rates on the workload's own graph."""
        work = self.work
        limits = Limits.of(work.graph.edge_index, work.nodes, self.device)
        programs = {}
        for name in _DETAILED:
            if name in self.peers and (module := self.peers[name].module) is not None:
                self._say(f"{work.name}: ops of {name}")
                found = op_times(module, work.arguments(work.graph), limits)
                programs[name.removeprefix("gnnfx-")] = [asdict(op) for op in found]
        for inputs, outputs in zip(work.channels, work.channels[1:], strict=False):
            for size, dtype in ((4, torch.float32), (1, torch.int8)):
                limits.gather(inputs * size)
                limits.gemm(work.nodes, inputs, outputs, dtype)
        return {"limits": limits.to_dict(), "programs": programs}

    def _may_be_best(self, name: str) -> bool:
        return not name.startswith("gnnfx") and self.rows[name].status == "ok"

    def _is_too_large(self, row: Row, make: Callable[[Workload], Peer], small: Workload) -> bool:
        """Estimate the peer's memory; compiled code is taken to need what eager needs."""
        eager = self.rows.get("eager") if row.peer == "compile" else None
        if eager is not None and eager.estimated_bytes is not None:
            row.estimated_bytes = eager.estimated_bytes
        else:
            row.estimated_bytes = estimated_bytes(make, small, self.device)
        if row.estimated_bytes <= available_bytes(self.device):
            return False
        row.status = "out of memory"
        row.note = f"needs about {row.estimated_bytes / 2**30:.0f} GiB, not run"
        return True

    def _run_once(self, peer: Peer, row: Row) -> None:
        """Answers against eager's, which come first, and the peak memory of a call.

        Answers are compared on the first and the last graph; on the small one if eager does not
        fit on those.
        """
        graphs = {id(g): g for g in (self.work.graphs[0], self.work.graphs[-1])}
        if self.rows["eager"].status == "out of memory" and self._small is not None:
            self._compare(peer, row, self._small.graph)
            graphs = {}
        prepared = peer.prepare(self.work.graph)
        outputs: list[Tensor] = []
        call = lambda: outputs.append(peer.call(prepared))  # noqa: E731
        while True:
            start = time.perf_counter()
            peak = peak_bytes(call, repeats=1, device=self.device, warmup=False)
            self._known[peer.name] = time.perf_counter() - start
            # The first call of all makes buffers that stay; torch.compile compiles in it.
            if len(outputs) == 2 or (self._known[peer.name] > _LONG and peer.name != "compile"):
                break
        row.peak_bytes = peak
        for graph in graphs.values():
            self._compare(peer, row, graph, outputs[0] if graph is self.work.graph else None)

    def _compare(self, peer: Peer, row: Row, graph: Graph, out: Tensor | None = None) -> None:
        if out is None:
            out = peer.call(peer.prepare(graph))
        if peer.name == "eager":
            self._expected[id(graph)] = out
        elif id(graph) not in self._expected:
            self._expected[id(graph)] = self.work.model(*self.work.arguments(graph))
        expected = self._expected[id(graph)]
        scale = max(float(expected.abs().max()), 1e-30)
        difference = float((out - expected).abs().max()) / scale
        if peer.exact and difference > EXACT_TOLERANCE and self._small is None:
            # Where a model magnifies rounding, eager's answer may be the one that is off.
            exact = self._in_float64(graph)
            own, eager = (float((y - exact).abs().max()) / scale for y in (out, expected))
            difference = own if own <= eager else difference
        row.relative_difference = max(row.relative_difference or 0.0, difference)
        row.same_argmax = float((out.argmax(1) == expected.argmax(1)).float().mean())

    def _in_float64(self, graph: Graph) -> Tensor:
        """What eager gives if it rounds to float64."""
        model = copy.deepcopy(self.work.model).double()
        arguments = self.work.arguments(graph)
        return cast(Tensor, model(*(a.double() if a.is_floating_point() else a for a in arguments)))

    def _time(self, kind: str, budget: float, names: list[str]) -> dict[str, Rounds]:
        self._say(f"{self.work.name}: {kind} graph")
        make = self._warm if kind == "warm" else self._renewed
        calls = {name: make(self.peers[name]) for name in names}
        return interleave(calls, budget, self.device) if calls else {}

    def _warm(self, peer: Peer) -> Timed:
        prepared = peer.prepare(self.work.graph)
        call = lambda: peer.call(prepared)  # noqa: E731
        known = self._known[peer.name]
        return Timed(call, known if known > _LONG else clock(call, self.device))

    def _renewed(self, peer: Peer) -> Timed:
        fresh = _Fresh(peer, self.work.graphs)
        fresh.renew()
        known = self._known[peer.name]
        once = known if known > _LONG else clock(fresh.run, self.device)
        return Timed(fresh.run, once, fresh.renew)


class _Fresh:
    """Calls of one peer, each on a graph that it has not seen."""

    def __init__(self, peer: Peer, graphs: tuple[Graph, ...]) -> None:
        self._peer = peer
        self._graphs = graphs
        self._turn = 0
        self._graph = graphs[0]

    def renew(self) -> None:
        self._turn += 1
        self._graph = self._graphs[self._turn % len(self._graphs)].rotated(self._turn)

    def run(self) -> object:
        graph, self._graph = self._graph, self._graphs[0]  # a large graph lives no longer than used
        return self._peer.call(self._peer.prepare(graph))


@contextlib.contextmanager
def _failures(row: Row) -> Iterator[None]:
    """A peer that fails is a result, not the end of the run."""
    try:
        yield
    except Unavailable as reason:
        row.status, row.note = "not available", str(reason)
    except Exception as error:
        text = str(error).strip().splitlines()
        row.status, row.note = "failed", f"{type(error).__name__}: {text[0][:200] if text else ''}"


@torch.no_grad()
def compare(
    work: Workload, names: list[str], budget: float, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """All peers of `names`, the first of which is eager, and gnnfx's ops, as plain data."""
    comparison = Comparison(work, device, say)
    for name in names:
        comparison.set_up(name)
        gc.collect()
    timed = comparison.time(budget)
    return {
        "name": work.name,
        "model": work.model_name,
        "shape": shape(work),
        **timed,
        "peers": [asdict(row) for row in comparison.rows.values()],
        **comparison.against_limits(),
    }


def shape(work: Workload) -> dict[str, Any]:
    """Sizes of the workload's first graph."""
    edge_index = work.graph.edge_index
    keys = edge_index[0] * work.nodes + edge_index[1]
    return {
        "nodes": work.nodes,
        "edges": work.edges,
        "graphs": len(work.graphs),
        "channels": work.channels,
        "self_loops": int((edge_index[0] == edge_index[1]).sum()),
        "duplicate_edges": work.edges - len(keys.unique()),
    }
