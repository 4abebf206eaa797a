"""What was measured on the user's own graph: how long each alternative took, and what stayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Alternative:
    """One program that was timed against the best so far, in the same rounds.

    change: what it does otherwise, e.g. 'without select-sparse-linear at convs.0.lin'.
    milliseconds, best: medians of its calls and of those of the best so far.
    kept: whether it became the best.
    """

    change: str
    milliseconds: float
    best: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Tuned:
    """All alternatives in the order in which they were timed."""

    alternatives: tuple[Alternative, ...]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Tuned:
        """What `dataclasses.asdict`, or the JSON of it, describes."""
        return Tuned(tuple(Alternative(**a) for a in data["alternatives"]))

    def table(self) -> Table:
        """One row an alternative."""
        table = Table(title="tuned on the example: medians of interleaved calls")
        for column in ("alternative", "milliseconds", "best so far", "kept"):
            table.add_column(
                column, justify="left" if column in ("alternative", "kept") else "right"
            )
        for alternative in self.alternatives:
            table.add_row(
                alternative.change,
                f"{alternative.milliseconds:.3f}",
                f"{alternative.best:.3f}",
                "yes" if alternative.kept else "no",
            )
        return table
