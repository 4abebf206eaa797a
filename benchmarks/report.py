"""Make tables and plots of what `run.py` has measured, and put the short ones into the README.

    python benchmarks/report.py --device cpu

All tables go to `results/DEVICE/tables.md`, plots beside it; the summary replaces what stands
between the two marks of that device in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from environment import RESULTS
from plots import draw
from tables import Table, latency_table, op_row, op_tables, peer_table, ratio, scaling_table
from workloads import GRAPHS

README = Path(__file__).parent / "README.md"
_GATHERING = ("aggregate", "attend")
_SHOWN = ("gnnfx-fp32", "gnnfx-int8", "gnnfx-int4")


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a device, in the order of graphs."""
    order = {graph: number for number, graph in enumerate(GRAPHS)}
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda r: order.get(r["name"].rpartition("-")[0], len(order)))


def summary(results: list[dict[str, Any]]) -> str:
    """What a reader wants to know first, as Markdown."""
    works = [result for result in results if "peers" in result]
    parts = [_machines(results), _overview(works).markdown()]
    parts.append(_gathering(works).markdown())
    parts += [scaling_table(r).markdown() for r in results if "points" in r]
    parts += [latency_table(r).markdown() for r in results if "rows" in r]
    return "\n".join(parts)


def _machines(results: list[dict[str, Any]]) -> str:
    """What the results were measured on: a line a machine, with its graphs where there are more.

    Of graphs that were measured on several, the workloads are named.
    """
    on: dict[str, set[str]] = {}
    for result in results:
        on.setdefault(_graph(result), set()).add(_machine(result["environment"]))
    graphs: dict[str, list[str]] = {}
    for result in results:
        names = graphs.setdefault(_machine(result["environment"]), [])
        name = _graph(result) if len(on[_graph(result)]) == 1 else result["name"]
        if name not in names:
            names.append(name)
    if len(graphs) == 1:
        return f"Last run: {next(iter(graphs))}\n"
    lines = [f"- {', '.join(names)}: {machine}" for machine, names in graphs.items()]
    return "\n".join(["Last runs:", "", *lines, ""])


def _graph(result: dict[str, Any]) -> str:
    return str(result["name"]).rpartition("-")[0]


def _machine(found: dict[str, Any]) -> str:
    versions = found["versions"]
    where = found.get("gpu") or f"{found['torch_threads']} threads of {found['cpu']}"
    names = ("torch", "torch-geometric", "numba", "dgl", "tinygnn")
    return f"{where} ({found['cpu_capability']}), " + ", ".join(
        f"{name} {versions[name]}" for name in names if versions.get(name)
    )


def _overview(works: list[dict[str, Any]]) -> Table:
    """A line a workload: the best FP32 peer, and how much faster gnnfx is than it and eager."""
    rows = []
    for work in works:
        kind = "warm" if work["rounds"]["warm"] else "new"
        peers = {row["peer"]: row for row in work["peers"]}
        best = work["best"][kind]
        cells = [work["name"], best or "none"]
        for name in (best, "eager"):
            cells.append(_milliseconds(peers.get(name or ""), kind))
        for name in _SHOWN:
            cells.append(ratio(peers.get(name, {}).get(kind), "to_best"))
        for name in _SHOWN[:2]:
            cells.append(ratio(peers.get(name, {}).get("new"), "to_eager"))
        cells.append(_memory(peers))
        rows.append(tuple(cells))
    means = [_mean(works, name) for name in _SHOWN]
    rows.append(("geometric mean", "", "", "", *means, "", "", ""))
    return Table(
        "Warm graph (batches of `sampled`: new in each call): the fastest exact FP32 peer, and its "
        "time over gnnfx's, median (quartiles); then eager's time over gnnfx's on a graph that is "
        "new in each call; then peak memory of a call, eager's over gnnfx INT8's.",
        (
            *("workload", "best", "best ms", "eager ms", "fp32 x best", "int8 x best"),
            *("int4 x best", "fp32 new x eager", "int8 new x eager", "memory"),
        ),
        rows,
    )


def _milliseconds(row: dict[str, Any] | None, kind: str) -> str:
    if row is None:
        return ""
    return row["status"] if row[kind] is None else f"{1e3 * row[kind]['seconds']['median']:.2f}"


def _memory(peers: dict[str, dict[str, Any]]) -> str:
    eager, own = (peers.get(n, {}) for n in ("eager", "gnnfx-int8"))
    needed = eager.get("peak_bytes") or eager.get("estimated_bytes")
    return f"{needed / own['peak_bytes']:.1f}" if needed and own.get("peak_bytes") else ""


def _mean(works: list[dict[str, Any]], name: str) -> str:
    logs = []
    for work in works:
        row = next((row for row in work["peers"] if row["peer"] == name), None)
        timing = row and (row["warm"] or row["new"])
        if timing and timing["to_best"]:
            logs.append(math.log(timing["to_best"]["median"]))
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else ""


def _gathering(works: list[dict[str, Any]]) -> Table:
    """The ops that read rows in the order of an index, and those that are bound by it."""
    rows = [
        (f"{work['name']} {policy}", *op_row(op)[1:])
        for work in works
        for policy, ops in work["programs"].items()
        for op in ops
        if op["bound"] == "gather" or op["op"].removeprefix("quantized_").startswith(_GATHERING)
    ]
    return Table(
        "Ops that gather, against the rate at which this machine reads the same rows and does "
        "nothing else, or multiplies and does nothing else where that binds:",
        ("workload", "op", "by", "ms", "bound", "of limit", "GB/s", "GFLOP/s"),
        rows,
    )


def all_tables(results: list[dict[str, Any]]) -> str:
    """Every peer, every op."""
    parts = []
    for result in results:
        if "peers" in result:
            parts.append(peer_table(result).markdown())
            parts += [table.markdown() for table in op_tables(result)]
    return "\n".join(parts)


def insert(text: str, device: str, tables: str) -> str:
    """`text` with the part between the marks of a device replaced."""
    start, end = f"<!-- {device}: begin -->", f"<!-- {device}: end -->"
    if start not in text or end not in text:
        raise SystemExit(f"{README} lacks the marks {start} and {end}")
    before, rest = text.split(start)
    return f"{before}{start}\n\n{tables}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Read results, write Markdown and plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="folder of JSON files; prints the report")
    options = parser.parse_args()
    folder = options.results or RESULTS / options.device
    results = read(folder)
    if not results:
        raise SystemExit(f"{folder} holds no results: run benchmarks/run.py first")
    (folder / "tables.md").write_text(all_tables(results))
    pictures = draw(results, folder)
    if options.results is not None:
        print(summary(results))
        return
    links = [f"![{p.stem}]({p.relative_to(README.parent)})\n" for p in pictures]
    tables = "\n".join([summary(results), *links])
    README.write_text(insert(README.read_text(), options.device, tables))
    print(f"written: {README}, {folder / 'tables.md'}, {', '.join(p.name for p in pictures)}")


if __name__ == "__main__":
    main()
