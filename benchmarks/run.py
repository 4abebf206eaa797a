"""Compare ways to run a GNN on one machine, in one run, as ratios to eager PyG.

    python benchmarks/run.py --quick
    python benchmarks/run.py --workloads cora-gcn power-law-169k-gcn --root data --plot

For every workload each peer's output is first compared with eager's; a peer that gives another
answer is shown as such.  Then all peers run in interleaved rounds, once on a graph they have seen
(`warm`) and once on a graph that is new in every call (`new`, which includes turning the edge list
into what the peer computes on).  A ratio is eager's time over the peer's in the same round; its
median and quartiles over the rounds are reported, so a slow moment of the machine does not favour
anyone.  Peak memory is the growth of the resident set during one call (see
`gnnfx.measure.peak_bytes`).  Times in seconds, memory in bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peers import EXACT_TOLERANCE, PEERS, Peer, Unavailable
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from workloads import DEFAULT, NAMES, QUICK, Workload, make

from gnnfx.demo import DATA_ROOT
from gnnfx.measure import Spread, interleaved_seconds, new_graphs, peak_bytes, ratios

TABLE_WIDTH = 128
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("gnnfx", "torch", "torch-geometric", "numba", "numpy", "dgl")


@dataclass(slots=True)
class Timing:
    """Seconds of one call, and eager's time over this peer's, round by round."""

    seconds: Spread
    ratio: Spread
    peak_bytes: int


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
    setup_seconds: float | None = None
    extra: dict[str, object] = field(default_factory=dict)


def check(peer: Peer, work: Workload, expected: Tensor) -> Row:
    """Run the peer once and compare its output with eager's."""
    row = Row(peer.name, peer.note, extra=dict(peer.extra or {}))
    out = peer.call(peer.prepare(work.edge_index))
    scale = float(expected.abs().max())
    row.relative_difference = float((out - expected).abs().max()) / scale
    row.same_argmax = float((out.argmax(1) == expected.argmax(1)).float().mean())
    if not peer.exact:
        row.status = "approximate"
    elif row.relative_difference > EXACT_TOLERANCE:
        row.status = "other answer"
    return row


@torch.no_grad()
def measure(
    work: Workload, names: list[str], budget: float, say: Callable[[str], None]
) -> tuple[list[Row], int]:
    """All peers on one workload, and the number of rounds."""
    expected: Tensor = work.model(work.x, work.edge_index)
    peers: list[Peer] = []
    rows: dict[str, Row] = {}
    for name in names:
        say(f"{work.name}: set up {name}")
        start = time.perf_counter()
        try:
            peer = PEERS[name](work)
            rows[name] = check(peer, work, expected)
        except Unavailable as reason:
            rows[name] = Row(name, str(reason), status="not available")
            continue
        except Exception as error:  # a peer that fails is a result, not the end of the run
            text = str(error).strip().splitlines()
            first = text[0][:200] if text else ""
            rows[name] = Row(name, f"{type(error).__name__}: {first}", status="failed")
            continue
        rows[name].setup_seconds = time.perf_counter() - start
        peers.append(peer)

    graphs = {peer.name: peer.prepare(work.edge_index) for peer in peers}
    warm_calls = {peer.name: _warm(peer, graphs) for peer in peers}
    say(f"{work.name}: warm graph")
    warm = interleaved_seconds(warm_calls, budget=budget, warmup=2)
    warm_peaks = {name: _peak(call) for name, call in warm_calls.items()}

    fresh = {peer.name: _Fresh(peer, work.edge_index) for peer in peers}
    say(f"{work.name}: new graph each call")
    new = interleaved_seconds(
        {name: call.run for name, call in fresh.items()},
        prepare={name: call.renew for name, call in fresh.items()},
        budget=budget,
        warmup=2,
    )
    for name, call in fresh.items():
        call.renew()
        rows[name].warm = Timing(
            Spread.of(warm[name]), ratios(warm["eager"], warm[name]), warm_peaks[name]
        )
        rows[name].new = Timing(
            Spread.of(new[name]), ratios(new["eager"], new[name]), _peak(call.renew_and_run)
        )
    return list(rows.values()), len(warm["eager"])


def _peak(call: Callable[[], object]) -> int:
    return peak_bytes(call, repeats=1)


def _warm(peer: Peer, graphs: dict[str, Any]) -> Callable[[], object]:
    return lambda: peer.call(graphs[peer.name])


class _Fresh:
    """Calls of one peer, each on a graph that it has not seen."""

    def __init__(self, peer: Peer, edge_index: Tensor) -> None:
        self._peer = peer
        self._next = new_graphs(edge_index)
        self._graph = edge_index

    def renew(self) -> None:
        self._graph = self._next()

    def run(self) -> object:
        return self._peer.call(self._peer.prepare(self._graph))

    def renew_and_run(self) -> object:
        self.renew()
        return self.run()


def table(work: dict[str, Any], rows: list[Row]) -> Table:
    """One workload as a table."""
    shape = work["shape"]
    missing = [f"{row.peer}: {row.status}, {row.note}" for row in rows if row.warm is None]
    out = Table(
        title=f"{work['name']}: {shape['nodes']:,} nodes, {shape['edges']:,} edges, "
        f"channels {'-'.join(map(str, shape['channels']))}, {work['rounds']} rounds",
        caption="\n".join(["ratio: eager's time over the peer's, median (quartiles)", *missing]),
    )
    out.add_column("peer", no_wrap=True)
    for column in ("warm ms", "ratio", "new ms", "ratio", "peak MiB", "max diff", "same argmax"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("answer", no_wrap=True)
    for row in rows:
        if row.warm is None or row.new is None:
            continue
        out.add_row(
            row.peer,
            f"{1e3 * row.warm.seconds.median:.2f}",
            _ratio(row.warm.ratio),
            f"{1e3 * row.new.seconds.median:.2f}",
            _ratio(row.new.ratio),
            f"{row.warm.peak_bytes / 2**20:.1f}",
            f"{row.relative_difference:.1e}",
            f"{100 * (row.same_argmax or 0):.2f} %",
            row.status,
        )
    return out


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.q1:.2f}-{spread.q3:.2f})"


def environment() -> dict[str, Any]:
    """Device, threads and versions: what a reader needs to repeat a number."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": "cpu",
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def plot(result: dict[str, Any], path: Path) -> None:
    """Horizontal bars of the ratios to eager, one panel per workload, quartiles as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    works = result["workloads"]
    figure, axes = plt.subplots(
        len(works), 1, figsize=(8, 0.6 + 2.6 * len(works)), squeeze=False, layout="constrained"
    )
    for axis, work in zip(axes[:, 0], works, strict=True):
        rows = [row for row in work["peers"] if row["warm"] is not None]
        for offset, key, colour in ((0.2, "warm", "tab:blue"), (-0.2, "new", "tab:orange")):
            medians = [row[key]["ratio"]["median"] for row in rows]
            low = [row[key]["ratio"]["median"] - row[key]["ratio"]["q1"] for row in rows]
            high = [row[key]["ratio"]["q3"] - row[key]["ratio"]["median"] for row in rows]
            places = [len(rows) - index + offset for index in range(len(rows))]
            label = "warm graph" if key == "warm" else "new graph each call"
            axis.barh(places, medians, 0.38, xerr=[low, high], color=colour, label=label, capsize=2)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yticks(
            [len(rows) - index for index in range(len(rows))],
            [row["peer"] + (" (!)" if row["status"] == "other answer" else "") for row in rows],
        )
        axis.set_title(work["name"])
        axis.set_xlabel("times faster than eager; (!) gives another answer than eager")
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Parse arguments, run, write JSON, print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="PEER")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of Planetoid's files")
    parser.add_argument("--out", type=Path, default=RESULTS / "run.json", help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="small graphs, few rounds")
    parser.add_argument("--budget", type=float, help="seconds for each of the two timings")
    parser.add_argument("--plot", action="store_true", help="draw a PNG beside the JSON file")
    options = parser.parse_args()
    names = options.workloads or list(QUICK if options.quick else DEFAULT)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown workloads {', '.join(unknown)}; known: {', '.join(NAMES)}")
    peers = list(dict.fromkeys(["eager", *(options.peers or PEERS)]))
    budget = options.budget or (2.0 if options.quick else 20.0)

    console = Console(width=max(Console().width, TABLE_WIDTH))
    result: dict[str, Any] = {"environment": environment(), "workloads": []}
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=len(names))
        for name in names:
            work = make(name, options.root)
            rows, rounds = measure(
                work, peers, budget, lambda text: bars.update(task, description=text)
            )
            entry = {
                "name": name,
                "model": work.model_name,
                "shape": {
                    "nodes": work.x.shape[0],
                    "edges": work.edge_index.shape[1],
                    "channels": work.channels,
                    "self_loops": work.self_loops,
                    "duplicate_edges": work.duplicate_edges,
                },
                "rounds": rounds,
                "peers": [asdict(row) for row in rows],
            }
            result["workloads"].append(entry)
            console.print(table(entry, rows))
            bars.advance(task)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written: {options.out}")
    if options.plot:
        picture = options.out.with_suffix(".png")
        plot(result, picture)
        console.print(f"written: {picture}")


if __name__ == "__main__":
    main()
