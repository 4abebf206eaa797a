"""Everything that is measured of the speed of gnnfx, by one command on a quiet machine.

    python benchmarks/run.py --root data
    python benchmarks/run.py --quick
    python benchmarks/run.py --workloads cora-gcn power-law-169k-gcn --root data

Three parts: `workloads` compares gnnfx with its peers on models and graphs, and its ops with what
the machine can do; `scaling` follows a few of them over nodes, degree, width and threads; `latency`
takes the distribution of single calls on small graphs.  Each workload is one JSON file in the
folder of the device; what is there is skipped, so a run that was stopped goes on.
`benchmarks/report.py` makes tables and plots of the files.

For every workload each peer's output is first compared with eager's; a peer that gives another
answer is shown as such.  Peers that would not fit into memory, by an estimate on a graph a
sixteenth as large, are not run.  Then all peers run in interleaved rounds, once on a graph they
have seen (`warm`) and once on a graph that is new in every call (`new`, which includes turning the
edge list into what the peer computes on).  A ratio is another peer's time over the peer's in the
same round; medians and quartiles over the rounds are kept, so a slow moment of the machine does not
favour anyone.  `best` is the fastest peer beside gnnfx that gives eager's float32 answer.  Peak
memory is the growth of the resident set during one call (see `gnnfx.measure.peak_bytes`).  Times in
seconds, memory in bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compare import compare
from environment import RESULTS, environment, write
from graphs import Missing
from latency import LATENCIES, latency
from peers import PEERS
from rich.console import Console
from rich.progress import Progress
from scaling import CURVES, curve
from tables import latency_table, op_tables, peer_table, scaling_table
from workloads import DEFAULT, NAMES, QUICK, make

from gnnfx.demo import DATA_ROOT

PARTS = ("workloads", "scaling", "latency")
_BUDGET = 10.0
_QUICK_BUDGET = 1.0
_WIDTH = 160
Job = Callable[[Callable[[str], None]], dict[str, Any]]


def jobs(options: argparse.Namespace) -> dict[str, Job]:
    """What is to be measured, by the name of its file."""
    found: dict[str, Job] = {}
    if "workloads" in options.parts:
        for name in options.workloads or (QUICK if options.quick else DEFAULT):
            found[name] = lambda say, name=name: _workload(name, options, say)  # type: ignore[misc]
    if "scaling" in options.parts:
        for axis, model in CURVES[:1] if options.quick else CURVES:
            found[f"scaling-{axis}-{model}"] = lambda say, axis=axis, model=model: curve(  # type: ignore[misc]
                axis, model, options.budget / 2, options.device, say, quick=options.quick
            )
    if "latency" in options.parts:
        for graph, model in LATENCIES[:1] if options.quick else LATENCIES:
            found[f"latency-{graph}-{model}"] = lambda say, graph=graph, model=model: latency(  # type: ignore[misc]
                graph, model, options.root, options.budget, options.device, say
            )
    return found


def _workload(name: str, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    work = make(name, options.root)
    peers = ["eager", *(options.peers or PEERS[options.device])]
    return compare(work, list(dict.fromkeys(peers)), options.budget, options.device, say)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print what one file holds."""
    if "peers" in result:
        console.print(peer_table(result).rich())
        for table in op_tables(result):
            console.print(table.rich())
    elif "points" in result:
        console.print(scaling_table(result).rich())
    else:
        console.print(latency_table(result).rich())


def main() -> None:
    """Parse arguments; measure what is not there yet; write JSON and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=list(PEERS), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="all of the device if not given")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help="folder of the data sets")
    parser.add_argument("--out", type=Path, help="folder of JSON files; --quick keeps none without")
    parser.add_argument("--quick", action="store_true", help="small graphs, few rounds")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--budget", type=float, help="seconds for each timing of a workload")
    options = parser.parse_args()
    for given, known in ((options.workloads, NAMES), (options.peers, PEERS[options.device])):
        if unknown := sorted(set(given or ()) - set(known)):
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    options.budget = options.budget or (_QUICK_BUDGET if options.quick else _BUDGET)
    out = options.out or (None if options.quick else RESULTS / options.device)

    console = Console(width=max(Console().width, _WIDTH))
    todo = jobs(options)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=len(todo))
        for name, job in todo.items():
            bars.update(task, description=name)
            path = None if out is None else out / f"{name}.json"
            if path is None or options.again or not path.exists():
                try:
                    result = job(lambda text: bars.update(task, description=text))
                except Missing as reason:
                    console.print(f"{name}: skipped: {reason}")
                    bars.advance(task)
                    continue
                result = {"environment": environment(options.device), **result}
                if path is not None:
                    write(path, result)
                show(console, json.loads(json.dumps(result)))
                gc.collect()
            bars.advance(task)
    if out is not None:
        console.print(f"results are in {out}; python benchmarks/report.py makes the report")


if __name__ == "__main__":
    main()
