"""Results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_OWN = ("gnnfx-fp32", "gnnfx-int8")


def draw(results: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write all pictures that there are results for."""
    found = []
    works = [result for result in results if "peers" in result]
    if works:
        found.append(_ratios(works, folder / "ratios.png"))
    if curves := [result for result in results if "points" in result]:
        found.append(_curves(curves, folder / "scaling.png"))
    if singles := [result for result in results if "rows" in result]:
        found.append(_latencies(singles, folder / "latency.png"))
    return found


def _ratios(works: list[dict[str, Any]], path: Path) -> Path:
    """Time of the best FP32 peer over gnnfx's, a line a workload, quartiles as whiskers."""
    figure = Figure(figsize=(8, 1 + 0.28 * len(works)), layout="constrained")
    axes = figure.subplots()
    for name, shift, colour in zip(_OWN, (0.2, -0.2), ("tab:blue", "tab:orange"), strict=True):
        places, middle, low, high = [], [], [], []
        for number, work in enumerate(works):
            row = next((row for row in work["peers"] if row["peer"] == name), None)
            timing = row and (row["warm"] or row["new"])
            if timing and (spread := timing["to_best"]):
                places.append(len(works) - number + shift)
                middle.append(spread["median"])
                low.append(spread["median"] - spread["q1"])
                high.append(spread["q3"] - spread["median"])
        axes.barh(places, middle, 0.38, xerr=[low, high], color=colour, label=name, capsize=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(works), 0, -1), [work["name"] for work in works], fontsize="small")
    axes.set_xlabel("times faster than the best exact FP32 peer")
    axes.legend()
    figure.savefig(path, dpi=110)
    return path


def _curves(curves: list[dict[str, Any]], path: Path) -> Path:
    figure = Figure(figsize=(5 * len(curves) / 2 + 1, 8), layout="constrained")
    columns = (len(curves) + 1) // 2
    for axes, curve in zip(figure.subplots(2, columns, squeeze=False).flat, curves, strict=False):
        points = curve["points"]
        for peer in dict.fromkeys(name for point in points for name in point["seconds"]):
            there = [p for p in points if peer in p["seconds"]]
            seconds = [1e3 * p["seconds"][peer][0] for p in there]
            axes.plot([p["value"] for p in there], seconds, "o-", label=peer)
        axes.set(title=f"{curve['model']} over {curve['axis']}", xlabel=curve["axis"], ylabel="ms")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
    return path


def _latencies(singles: list[dict[str, Any]], path: Path) -> Path:
    """Half of all calls are as fast as the bar, 99 in a hundred as fast as its whisker."""
    figure = Figure(figsize=(4 * len(singles), 3.5), layout="constrained")
    for axes, single in zip(
        figure.subplots(1, len(singles), squeeze=False)[0], singles, strict=True
    ):
        names = list(single["rows"])
        p50 = [1e3 * single["rows"][n]["p50"] for n in names]
        p99 = [1e3 * single["rows"][n]["p99"] for n in names]
        rest = [high - low for low, high in zip(p50, p99, strict=True)]
        axes.barh(names, p50, xerr=[[0.0] * len(p50), rest], capsize=2)
        axes.invert_yaxis()
        axes.set(title=f"{single['graph']}, {single['model']}", xlabel="ms")
    figure.savefig(path, dpi=110)
    return path
