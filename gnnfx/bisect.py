"""Find the pass that changes what a program computes, and the first value it changes.

The program is run after every pass on the example inputs, and compared with the program before
the pass; the traced program is compared with the model itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnfx.frontend.signature import flatten
from gnnfx.frontend.trace import Traced, frozen_copy
from gnnfx.history import History, record
from gnnfx.ir.program import Program
from gnnfx.pass_manager import Numerics
from gnnfx.policy import Policy
from gnnfx.verify_outputs import outputs_of

# Relative to the largest value.  An exact pass may still select another kernel, which rounds
# float32 sums elsewhere; every change beyond that is a fault.
_TOLERANCE = {Numerics.EXACT: 1e-6, Numerics.REORDERED: 1e-5, Numerics.LOSSY: float("inf")}


@dataclass(frozen=True, slots=True)
class Change:
    """How far one pass moved the outputs.

    size: largest difference, relative to the largest output before the pass; inf if shapes
        differ, or where only one side is finite.
    instr: for a change beyond what the pass declares, the first instruction whose value differs
        among those that keep their name; '' if only new names differ.
    """

    label: str
    numerics: Numerics
    size: float
    instr: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the change is within what the pass declares."""
        return self.size <= _TOLERANCE[self.numerics]


@dataclass(frozen=True)
class Bisection:
    """The change of every pass, in order; the first is that of tracing."""

    changes: tuple[Change, ...]

    @property
    def culprit(self) -> Change | None:
        """The first pass that changed outputs beyond what it declares."""
        return next((change for change in self.changes if not change.allowed), None)

    def table(self) -> Table:
        """One row a pass."""
        table = Table(title="change of the outputs, pass by pass")
        for column in ("pass", "declared", "change", "", "first value that differs"):
            table.add_column(column, justify="right" if column == "change" else "left")
        for change in self.changes:
            lossy = change.numerics is Numerics.LOSSY
            verdict = "lossy" if lossy else "ok" if change.allowed else "WRONG"
            numerics = change.numerics.value
            table.add_row(change.label, numerics, f"{change.size:.2g}", verdict, change.instr)
        return table


def bisect(
    model: nn.Module,
    policy: str | Policy = "int8",
    example_inputs: tuple[Any, ...] | None = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
) -> Bisection:
    """Run the passes of `policy` one by one and measure what each does to the outputs.

    Takes the arguments of `optimize`, and raises what it raises except MismatchError, which is
    what this function is there to explain.
    """
    history = record(
        model, policy, example_inputs, example_kwargs=example_kwargs, calibration=calibration
    )
    return compare(history, model)


def compare(history: History, model: nn.Module) -> Bisection:
    """The change of the outputs by every step of `history` on its example inputs."""
    traced = history.traced
    inputs = _inputs(traced)
    before, outputs = None, outputs_of(frozen_copy(model), traced.example)
    changes = []
    for step in history.steps:
        if step.program is before:
            changes.append(Change(step.label, step.numerics, 0.0))
            continue
        old, outputs = outputs, pytree.tree_leaves(step.program.run(*inputs))
        change = Change(step.label, step.numerics, _largest(old, outputs))
        if not change.allowed and before is not None:
            instr = _first_difference(before, step.program, inputs, _TOLERANCE[step.numerics])
            change = Change(step.label, step.numerics, change.size, instr)
        changes.append(change)
        before = step.program
    return Bisection(tuple(changes))


def _inputs(traced: Traced) -> tuple[Any, ...]:
    leaves = flatten(traced.example)
    return tuple(leaves[name] for name in traced.leaves)


def _largest(old: list[Any], new: list[Any]) -> float:
    pairs = zip(old, new, strict=True)
    return max((_difference(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)


def _difference(old: Tensor, new: Any) -> float:
    """Largest difference relative to the largest magnitude in `old`."""
    if not isinstance(new, Tensor) or old.shape != new.shape:
        return float("inf")
    if old.numel() == 0:
        return 0.0
    old, new = old.double(), new.double()
    if not torch.equal(old.isfinite(), new.isfinite()):
        return float("inf")
    finite = old.isfinite()
    scale = float(old[finite].abs().max()) if bool(finite.any()) else 0.0
    worst = float((old - new)[finite].abs().max()) if bool(finite.any()) else 0.0
    return worst / max(scale, 1e-12)


def _first_difference(
    before: Program, after: Program, inputs: tuple[Any, ...], tolerance: float
) -> str:
    """The first instruction of `after` with another value than its namesake in `before`."""
    old, new = before.values(*inputs), after.values(*inputs)
    for name, value in new.items():
        was = old.get(name)
        if isinstance(was, Tensor) and _difference(was, value) > tolerance:
            return name
    return ""
