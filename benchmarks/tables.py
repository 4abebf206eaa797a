"""Results as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import rich.table

_FIRST = "peer"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under columns; the first column is a name, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        out = rich.table.Table(title=self.title, caption="\n".join(self.notes))
        for number, column in enumerate(self.columns):
            out.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            out.add_row(*row)
        return out

    def markdown(self) -> str:
        """With its title as a line before it and its notes as lines after it."""
        lines = [self.title, "", "| " + " | ".join(self.columns) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.columns) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def peer_table(result: dict[str, Any]) -> Table:
    """All peers of one workload."""
    shape = result["shape"]
    rows, missing = [], []
    for row in result["peers"]:
        warm, new = row["warm"], row["new"]
        if warm is None and new is None:
            missing.append(f"{row['peer']}: {row['status']}, {row['note']}")
            continue
        own = row["peer"].startswith("gnnfx")
        cells = [row["peer"]]
        for timing in (warm, new):
            cells.append(milliseconds(timing))
            cells.append(ratio(timing, "to_eager"))
            cells.append(ratio(timing, "to_best") if own else "")
        cells.append("" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}")
        difference = row["relative_difference"]
        cells.append("" if difference is None else f"{difference:.0e}")
        cells.append(row["status"])
        rows.append(tuple(cells))
    channels = "-".join(map(str, shape["channels"]))
    best = result["best"]
    return Table(
        f"{result['name']}: {shape['nodes']:,} nodes, {shape['edges']:,} edges, channels "
        f"{channels}, at most {result['rounds']['warm'] or result['rounds']['new']} rounds",
        (
            *(_FIRST, "warm ms", "x eager", "x best", "new ms", "x eager", "x best"),
            *("peak MiB", "difference", "answer"),
        ),
        rows,
        (f"best: {best['warm'] or 'none'} warm, {best['new'] or 'none'} new", *missing),
    )


def op_tables(result: dict[str, Any]) -> Iterator[Table]:
    """What takes time in each program of gnnfx, and how close it is to the machine's rates."""
    for policy, ops in result["programs"].items():
        rows = [op_row(op) for op in ops]
        for part in ("graph", "call"):
            mine = [op for op in ops if op["part"] == part]
            total = sum(op["seconds"] for op in mine)
            least = sum(op["least"] for op in mine)
            if total:
                share = f"{100 * least / total:.0f} %"
                rows.append((f"all of a {part}", "", "", f"{1e3 * total:.3f}", "", share, "", ""))
        yield Table(
            f"{result['name']}, {policy}: ops against the machine's limits",
            ("value", "op", "by", "ms", "bound", "of limit", "GB/s", "GFLOP/s"),
            rows,
        )


def op_row(op: dict[str, Any]) -> tuple[str, ...]:
    """One op: its time, what binds it, how much of the limit it reaches, and at what rates."""
    spent = op["seconds"]
    return (
        f"{op['name']} ({op['part']})",
        op["op"],
        op["impl"],
        f"{1e3 * spent:.3f}",
        op["bound"],
        f"{100 * op['least'] / spent:.0f} %",
        f"{op['bytes'] / spent / 1e9:.1f}",
        f"{op['flops'] / spent / 1e9:.1f}",
    )


def scaling_table(result: dict[str, Any]) -> Table:
    """Milliseconds of each peer at each point of a curve."""
    points = result["points"]
    peers = list(dict.fromkeys(name for point in points for name in point["seconds"]))
    rows = []
    for point in points:
        cells = [f"{point['value']:,}", f"{point['nodes']:,}", f"{point['edges']:,}"]
        for peer in peers:
            found = point["seconds"].get(peer)
            cells.append("" if found is None else f"{1e3 * found[0]:.2f}")
        rows.append(tuple(cells))
    return Table(
        f"{result['model']} over {result['axis']}: ms of a call on a warm graph",
        (result["axis"], "nodes", "edges", *peers),
        rows,
    )


def latency_table(result: dict[str, Any]) -> Table:
    """Percentiles of single calls."""
    rows = [
        (peer, *(f"{1e3 * row[p]:.3f}" for p in ("p50", "p90", "p99")), f"{row['calls']:,}")
        for peer, row in result["rows"].items()
    ]
    which = "one molecule a call" if result["graph"] == "molecule" else result["graph"]
    title = f"{result['model']}, {which}: ms of a call"
    return Table(title, (_FIRST, "p50", "p90", "p99", "calls"), rows)


def milliseconds(timing: dict[str, Any] | None) -> str:
    """The median."""
    return "" if timing is None else f"{1e3 * timing['seconds']['median']:.2f}"


def ratio(timing: dict[str, Any] | None, which: str) -> str:
    """The median and quartiles of a ratio, where there is one."""
    if timing is None or timing[which] is None:
        return ""
    low, middle, high = (_three_digits(timing[which][q]) for q in ("q1", "median", "q3"))
    return f"{middle} ({low}-{high})"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"
