"""What rounding does to the values of one sample, as numbers, and the plot that draws them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from gnnfx.errors import InputError
from gnnfx.trials import Trials

_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, slots=True)
class DegreeRange:
    """The values of nodes with in-degrees from `least` to `most`.

    before, after: (lowest, highest) in float32, and as codes give them.
    saturated: share of the values that are beyond the range of the codes.
    """

    least: int
    most: int
    nodes: int
    before: tuple[float, float]
    after: tuple[float, float]
    saturated: float


@dataclass(frozen=True, slots=True)
class Site:
    """One rounded value; its first reader is in `module`.  Without nodes: one range of degree 0."""

    value: str
    module: str
    bits: int
    ranges: tuple[DegreeRange, ...]


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """Signal-to-noise ratio in dB of what a layer gives, after all rounding before and in it."""

    module: str
    value: str
    sqnr: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All rounded values and all layers in program order."""

    sites: tuple[Site, ...]
    layers: tuple[LayerNoise, ...]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Figures:
        """The figures that `dataclasses.asdict`, or the JSON of it, describes."""

        def range_of(r: dict[str, Any]) -> DegreeRange:
            return DegreeRange(**{**r, "before": tuple(r["before"]), "after": tuple(r["after"])})

        sites = (
            Site(**{**site, "ranges": tuple(map(range_of, site["ranges"]))})
            for site in data["sites"]
        )
        return Figures(tuple(sites), tuple(LayerNoise(**x) for x in data["layers"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """One row for each rounded value and range of degrees."""
        table = Table(title="rounded values of the first calibration sample, by in-degree")
        for column in ("value", "bits", "in-degree", "nodes", "float32", "codes", "saturated"):
            table.add_column(column, justify="left" if column == "value" else "right")
        for site in self.sites:
            for found in site.ranges:
                table.add_row(
                    f"{site.value} ({site.module or '(top)'})",
                    str(site.bits),
                    _degrees(found),
                    f"{found.nodes:,}",
                    "{:.3g} .. {:.3g}".format(*found.before),
                    "{:.3g} .. {:.3g}".format(*found.after),
                    f"{100 * found.saturated:.2f} %",
                )
        return table


def _degrees(found: DegreeRange) -> str:
    return str(found.least) if found.least == found.most else f"{found.least}-{found.most}"


def draw(figures: Figures | None, trials: Trials | None, path: Path) -> None:
    """Write ranges and saturation by degree, noise by layer, and the metric against bits.

    Raises InputError if matplotlib is missing, if there is nothing to draw, or for a path that is
    no .png, .pdf or .svg.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"path must end with one of {', '.join(_SUFFIXES)}; got {path.name!r}")
    if figures is None and trials is None:
        raise InputError(
            "the report has nothing to plot; expected one of gnnfx.optimize with calibration"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plotting needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    panels = (3 if figures is not None else 0) + (trials is not None)
    page = Figure(figsize=(6 * panels, 4.5), layout="constrained")
    axes = iter(page.subplots(1, panels, squeeze=False)[0])
    if figures is not None:
        _draw_ranges(next(axes), figures)
        _draw_saturation(next(axes), figures)
        _draw_noise(next(axes), figures)
    if trials is not None:
        _draw_trials(next(axes), trials)
    page.savefig(path, dpi=120)


def _draw_ranges(axes: Any, figures: Figures) -> None:
    for number, site in enumerate(figures.sites):
        degrees = [r.least for r in site.ranges]
        for end in (0, 1):
            label = site.value if end else None
            before, after = (
                [r.before[end] for r in site.ranges],
                [r.after[end] for r in site.ranges],
            )
            axes.plot(degrees, before, ":", color=f"C{number % 10}")
            axes.plot(degrees, after, "-", color=f"C{number % 10}", label=label)
    axes.set(title="ranges: float32 dotted, codes solid", xlabel="in-degree", ylabel="value")
    axes.set_xscale("symlog")
    axes.set_yscale("symlog")
    axes.legend(fontsize="x-small")


def _draw_saturation(axes: Any, figures: Figures) -> None:
    for number, site in enumerate(figures.sites):
        shares = [100 * r.saturated for r in site.ranges]
        axes.plot([r.least for r in site.ranges], shares, "o-", color=f"C{number % 10}")
    axes.set(title="values beyond the codes", xlabel="in-degree", ylabel="%")
    axes.set_xscale("symlog")


def _draw_noise(axes: Any, figures: Figures) -> None:
    names = [f"{x.module or '(top)'}: {x.value}" for x in figures.layers]
    axes.barh(names, [x.sqnr for x in figures.layers])
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize="x-small")
    axes.set(title="signal to noise by layer", xlabel="dB")


def _draw_trials(axes: Any, trials: Trials) -> None:
    for kept, marker in ((True, "o"), (False, "x")):
        found = [t for t in trials.trials if t.kept is kept]
        axes.plot([t.bits for t in found], [t.metric for t in found], marker, ls="none")
    axes.axhline(trials.model_metric, ls=":", color="grey")
    axes.axhline(trials.model_metric - trials.max_drop, ls="--", color="grey")
    axes.set(title="metric by mean bits: o kept, x not", xlabel="bits", ylabel="metric")
