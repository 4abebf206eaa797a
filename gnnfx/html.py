"""One page of HTML that shows a program after every pass; it needs no network and no server.

    Path("gcn.html").write_text(gnnfx.html.page(record(model, "int8", (x, edge_index)).steps))

The page's style and script are in page.html.  Instructions are stored once and shared by all the
steps in which they read the same, so a page grows with what passes change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from gnnfx.history import Step
from gnnfx.ir.graph import cost_of, used_values
from gnnfx.ir.infer import axis_domains, structure_values
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.text import format_instr, format_return
from gnnfx.ir.types import Domain, TupleType

_PLACE_OF_DATA = "{/* data */}"


def page(steps: Sequence[Step], title: str = "") -> str:
    """The text of the page; `title` is the program's name unless given.

    Raises ValueError if there are no steps.
    """
    if not steps:
        raise ValueError("steps is empty; expected at least one program")
    text = json.dumps(_data(steps, title or steps[-1].program.name), separators=(",", ":"))
    # Text of the user's (names of modules) must not end the script element that holds it.
    return _template().replace(_PLACE_OF_DATA, text.replace("<", "\\u003c"))


@cache
def _template() -> str:
    return files("gnnfx").joinpath("page.html").read_text(encoding="utf-8")


def _data(steps: Sequence[Step], title: str) -> dict[str, Any]:
    """What the page is told: distinct instructions, and for each step which of them it holds."""
    numbers: dict[str, int] = {}
    programs: dict[int, list[int]] = {}
    shown = []
    for step in steps:
        key = id(step.program)
        if key not in programs:
            entries = (json.dumps(entry) for entry in _entries(step.program))
            programs[key] = [numbers.setdefault(entry, len(numbers)) for entry in entries]
        shown.append(
            {
                "label": step.label,
                "numerics": step.numerics.value,
                "program": list(programs).index(key),
                "remarks": [
                    {"at": r.instr, "module": r.module, "text": r.text, "done": r.done}
                    for r in step.remarks
                ],
            }
        )
    return {
        "title": title,
        "instrs": [json.loads(entry) for entry in numbers],
        "programs": list(programs.values()),
        "steps": shown,
    }


def _entries(program: Program) -> list[dict[str, Any]]:
    structural = structure_values(program, axis_domains(program))
    return [_entry(program, instr, instr.name in structural) for instr in program.instrs]


def _entry(program: Program, instr: Instr, structural: bool) -> dict[str, Any]:
    cost = cost_of(program, instr)
    return {
        "name": instr.name,
        "op": instr.op,
        "type": "" if instr.type is None else str(instr.type),
        "domain": _domain(instr, structural).value,
        "structural": structural,
        "module": instr.module,
        "origin": instr.record.origin,
        "cost": None if cost is None else [str(cost.flops), str(cost.bytes)],
        "reads": [[value, ", ".join(names)] for value, names in used_values(instr).items()],
        "args": _constants(instr),
        "text": _line(instr),
    }


def _domain(instr: Instr, structural: bool) -> Domain:
    """The domain of a value; several results of one op share that of the graph they describe."""
    several = isinstance(instr.type, TupleType)
    return Domain.STRUCTURE if structural and several else instr.domain


def _line(instr: Instr) -> str:
    """The line of the text form; inputs, which share the first line there, have their own."""
    if instr.op == "input":
        return f"{instr.name}: {instr.type} = input()"
    return format_return(instr) if instr.op == "return" else format_instr(instr)


def _constants(instr: Instr) -> list[list[str]]:
    """Names and values of the arguments that are no values of the program."""
    if instr.op in ("input", "param", "return"):
        return [["tensor", instr.param]] if instr.op == "param" else []
    return [
        [name, str(value)]
        for name, value in instr.args.items()
        if value is not None and not isinstance(value, Instr) and not _holds_instr(value)
    ]


def _holds_instr(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, Instr) or _holds_instr(v) for v in value)
