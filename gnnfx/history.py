"""The program after every pass, for whoever wants to look at what the compiler did.

    history = record(model, "int8", (x, edge_index))
    print(dump(history.after("fuse-aggregate").program))

A pass that runs more than once has the labels name, name#2, name#3 and so on; name#1 is name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gnnfx.api import capture, run_passes
from gnnfx.errors import InputError, MismatchError
from gnnfx.frontend.trace import Traced
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump
from gnnfx.pass_manager import Numerics, Pass, PassContext, Remark
from gnnfx.policy import Policy, as_policy

TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Step:
    """The program after one run of a pass, and what that run said.

    label: the pass and which run of it; 'trace' for the program that the passes start from.
    """

    label: str
    numerics: Numerics
    program: Program
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class History:
    """All steps of one model in order.

    mismatch: the message of the MismatchError that ended the run, if one did.
    """

    traced: Traced
    steps: tuple[Step, ...]
    mismatch: str = ""

    @property
    def program(self) -> Program:
        """The program after the last step."""
        return self.steps[-1].program

    def after(self, label: str) -> Step:
        """The step called `label`; raises InputError with the labels there are."""
        wanted = label.removesuffix("#1")
        for step in self.steps:
            if step.label == wanted:
                return step
        labels = ", ".join(step.label for step in self.steps)
        raise InputError(f"no pass {label!r} ran; expected one of {labels}")

    def write(self, folder: Path) -> list[Path]:
        """Write the text after every step, as 03-fold-constants.txt; the files written."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, step in enumerate(self.steps):
            files.append(folder / f"{number:02d}-{step.label.replace('#', '-')}.txt")
            files[-1].write_text(dump(step.program))
        return files


def record(
    model: nn.Module,
    policy: str | Policy = "int8",
    example_inputs: tuple[Any, ...] | None = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
    stop_after: str | None = None,
) -> History:
    """Take `model` the road of `optimize`, and keep the program after every pass.

    stop_after: label of the last pass to run; all passes run without it.

    A wrong program is kept too: see `History.mismatch`.  Raises what `optimize` raises otherwise,
    and InputError if no pass is called `stop_after`.
    """
    ctx = PassContext(as_policy(policy))
    traced = capture(model, ctx, example_inputs, example_kwargs)
    recorder = _Recorder(ctx, traced.program, stop_after)
    mismatch = ""
    try:
        if stop_after != TRACE:
            run_passes(model, traced, ctx, calibration, recorder)
    except MismatchError as error:
        mismatch = str(error)
    except _Stopped:
        pass
    history = History(traced, tuple(recorder.steps), mismatch)
    if stop_after is not None:
        history.after(stop_after)
    return history


class _Stopped(Exception):
    """The pass to stop after has run."""


class _Recorder:
    """Called by the pass manager after each pass."""

    def __init__(self, ctx: PassContext, traced: Program, stop_after: str | None) -> None:
        self.steps = [Step(TRACE, Numerics.REORDERED, traced)]
        self._ctx = ctx
        self._seen = 0
        self._runs: dict[str, int] = {}
        self._last = None if stop_after is None else stop_after.removesuffix("#1")

    def __call__(self, pass_: Pass, before: Program, after: Program) -> None:
        run = self._runs[pass_.name] = self._runs.get(pass_.name, 0) + 1
        label = pass_.name if run == 1 else f"{pass_.name}#{run}"
        remarks = tuple(self._ctx.remarks[self._seen :])
        self._seen = len(self._ctx.remarks)
        self.steps.append(Step(label, pass_.numerics, after, remarks))
        if label == self._last:
            raise _Stopped
