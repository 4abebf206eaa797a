"""What was tried to keep a metric: which layers cost how much, and what each attempt gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one layer costs: the signal-to-noise ratio of the outputs if it alone is rounded, dB."""

    layer: str
    sqnr: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One program that the metric judged.

    change: what was changed since the trial before, e.g. 'convs.0.lin: int8'.
    integer_layers: layers that run on integers.
    bits: mean width of weights and read values over the layers of the first trial, float32 as 32.
    kept: whether the change stayed.
    """

    change: str
    integer_layers: int
    bits: float
    metric: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Trials:
    """All trials in order, against the metric of the model as it was given."""

    max_drop: float
    model_metric: float
    sensitivities: tuple[Sensitivity, ...]
    trials: tuple[Trial, ...]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Trials:
        """The trials that `dataclasses.asdict`, or the JSON of it, describes."""
        return Trials(
            data["max_drop"],
            data["model_metric"],
            tuple(Sensitivity(**s) for s in data["sensitivities"]),
            tuple(Trial(**t) for t in data["trials"]),
        )

    def table(self) -> Table:
        """One row a trial."""
        title = f"trials; the model's metric is {self.model_metric:.6g}, max_drop {self.max_drop:g}"
        table = Table(title=title)
        for column in ("change", "integer layers", "mean bits", "metric", "drop", "kept"):
            table.add_column(column, justify="left" if column in ("change", "kept") else "right")
        for trial in self.trials:
            table.add_row(
                trial.change,
                str(trial.integer_layers),
                f"{trial.bits:.1f}",
                f"{trial.metric:.6g}",
                f"{self.model_metric - trial.metric:.6g}",
                "yes" if trial.kept else "no",
            )
        return table
