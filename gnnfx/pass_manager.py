"""Run passes in order, verify between them, and keep what they say about the program."""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gnnfx.figures import Figures
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.text import dump
from gnnfx.ir.verify import verify
from gnnfx.policy import Policy


class Numerics(enum.Enum):
    """How results after a pass relate to results before it."""

    EXACT = "exact"
    REORDERED = "reordered"
    LOSSY = "lossy"


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing a pass did, or refused to do and why."""

    pass_name: str
    module: str
    instr: str
    text: str
    done: bool


@dataclass(frozen=True, slots=True)
class Site:
    """A rewrite that can be left out: of which pass, in which module of the model."""

    pass_name: str
    module: str

    def __str__(self) -> str:
        return f"{self.pass_name} at {self.module or '(top)'}"


@dataclass
class PassContext:
    """What passes share in one run.

    ranges: observed (lowest, highest) of each observed value, by observer name.
    qparams: scale and zero point of each observed value that training has found, by observer name.
    degree_scales: factor of the rows of each bucket of in-degrees that training has found, by
        observer name.
    weight_scales: step of each output channel [O] that training has found, by weight name.
    densities: share of values that are not zero in each input of the user's example.
    example: inputs of the program from the user's example, or None if there was none.
    gradients: gradients that the user's model holds, by parameter name.
    masks: which values of each pruned tensor stay, by tensor name.
    figures: what rounding does to the first calibration sample, if there was one.
    declined: rewrites that shall be left out.
    choices: rewrites that could be left out, as passes come upon them.
    """

    policy: Policy = field(default_factory=Policy)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    qparams: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    degree_scales: dict[str, Tensor] = field(default_factory=dict)
    weight_scales: dict[str, Tensor] = field(default_factory=dict)
    densities: dict[str, float] = field(default_factory=dict)
    example: tuple[Any, ...] | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    figures: Figures | None = None
    declined: frozenset[Site] = frozenset()
    choices: list[Site] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    pass_name: str = ""

    def allows(self, instr: Instr) -> bool:
        """Whether a rewrite at `instr` that may be left out shall be done; declares that it may."""
        site = Site(self.pass_name, instr.module)
        if site in self.declined:
            self.missed(instr, "measured faster without")
            return False
        if site not in self.choices:
            self.choices.append(site)
        return True

    def did(self, instr: Instr, text: str) -> None:
        """Remember something that was done at `instr`."""
        self.remarks.append(Remark(self.pass_name, instr.module, instr.name, text, done=True))

    def missed(self, instr: Instr, reason: str) -> None:
        """Remember why something was not done at `instr`."""
        self.remarks.append(Remark(self.pass_name, instr.module, instr.name, reason, done=False))

    def reasons(self) -> str:
        """Why things were not done, in one line."""
        missed = [f"{r.module or r.instr}: {r.text}" for r in self.remarks if not r.done]
        return "; ".join(missed) or "it has no linear layer and no sum over neighbours"


class Pass(abc.ABC):
    """A rewrite of a whole program.

    needs, gives: facts about the program that must hold before, and that hold after.
    A pass that changes nothing returns the program it was given.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.EXACT

    @abc.abstractmethod
    def run(self, program: Program, ctx: PassContext) -> Program:
        """The program after this pass."""


AfterEach = Callable[[Pass, Program, Program], None]  # the pass, the program before and after it


class PassManager:
    """Runs an ordered list of passes; raises ValueError if a pass lacks what it needs."""

    def __init__(self, passes: Sequence[Pass], facts: frozenset[str] = frozenset()) -> None:
        known = set(facts)
        for pass_ in passes:
            if lacking := pass_.needs - known:
                raise ValueError(f"{pass_.name} needs {sorted(lacking)}; no pass before gives it")
            known |= pass_.gives
        self.passes = tuple(passes)

    def run(
        self,
        program: Program,
        ctx: PassContext,
        *,
        dump_to: Path | None = None,
        after_each: AfterEach | None = None,
    ) -> Program:
        """Apply every pass; with `dump_to`, write the text after each into that folder."""
        for number, pass_ in enumerate(self.passes):
            ctx.pass_name = pass_.name
            before, program = program, pass_.run(program, ctx)
            if program is not before:
                verify(program, before)
            if after_each is not None:
                after_each(pass_, before, program)
            if dump_to is not None:
                dump_to.mkdir(parents=True, exist_ok=True)
                (dump_to / f"{number:02d}-{pass_.name}.txt").write_text(dump(program))
        return program
