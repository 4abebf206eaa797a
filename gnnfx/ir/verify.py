"""The verifier that runs between passes: names, types, codes, and an unchanged interface."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import fx

from gnnfx.errors import VerifyError
from gnnfx.ir.infer import infer_anew
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.text import format_instr
from gnnfx.ir.types import Codes

_DECIDED = re.compile(r"\bD\d+\b")  # sizes that the data decide


def verify(program: Program, before: Program | None = None) -> None:
    """Check every invariant; raises VerifyError with the lines around the instruction at fault.

    With `before`, inputs and result types must be those of `before`.
    """
    defined: set[fx.Node] = set()
    for instr in program.instrs:
        for operand in instr.node.all_input_nodes:
            if operand not in defined:
                _fail(program, instr, f"{operand.name} is used before it is defined")
        defined.add(instr.node)
        if "gnnfx" not in instr.node.meta:
            _fail(program, instr, "has no record")
        _verify_type(program, instr)
        _verify_codes(program, instr)
    if before is not None:
        _verify_interface(before, program)


def _verify_type(program: Program, instr: Instr) -> None:
    if instr.op in ("input", "return"):
        return
    if instr.op == "param" and instr.param not in program.tensors:
        _fail(program, instr, f"the program owns no tensor {instr.param!r}")
    try:
        inferred = program.type_of(infer_anew(program, instr.node))
    except Exception as error:
        _fail(program, instr, f"{instr.op} does not take these arguments: {error}")
    if inferred != instr.type:
        _fail(program, instr, f"is recorded as {instr.type}, but its arguments give {inferred}")


def _verify_codes(program: Program, instr: Instr) -> None:
    """Codes are used with the scale and zero point that they were made with."""
    if instr.definition is None or instr.op in ("quantize", "fake_quantize"):
        return
    for value, used in _reads(instr.args):
        made = _made(value)
        if made is not None and made != used:
            _fail(program, instr, f"reads codes made with {made} as {used}")


def _reads(args: dict[str, Any]) -> Iterator[tuple[Any, Codes]]:
    """What may be codes among the arguments, and what it is read as."""
    for values, scale, zero_point in [
        ("x", "scale", "zero_point"),
        ("codes", "scale", "zero_point"),
        ("x_src", "scale_src", "zero_point_src"),
        ("x_dst", "scale_dst", "zero_point_dst"),
    ]:
        if not args.keys() >= {values, scale, zero_point}:
            continue
        read = args[values], args.get("bits", 8), args[scale], args[zero_point]
        several = isinstance(args[values], list)
        for value, bits, by, zero in zip(*read, strict=True) if several else [read]:
            yield value, Codes(bits, by.name, zero.name)


def _made(value: Any) -> Codes | None:
    """Codes of a value, looked up through reshapes."""
    while isinstance(value, Instr) and value.op.startswith(("aten.view", "aten.reshape")):
        value = value.arg
    return value.record.codes if isinstance(value, Instr) else None


def _verify_interface(before: Program, after: Program) -> None:
    for kind, old, new in [
        ("inputs", before.inputs, after.inputs),
        ("results", before.results, after.results),
    ]:
        old_types, new_types = [str(i.type) for i in old], [str(i.type) for i in new]
        # One of two sizes that the data decide alike may stand for both.
        if [_DECIDED.sub("D", t) for t in old_types] != [_DECIDED.sub("D", t) for t in new_types]:
            raise VerifyError(f"the {kind} changed from {old_types} to {new_types}")


def _fail(program: Program, instr: Instr, what: str) -> None:
    lines = program.instrs
    at = lines.index(instr)
    around = [f"  {format_instr(i)}" for i in lines[max(0, at - 2) : at] if i.op != "input"]
    module = f" (from module {instr.module})" if instr.module else ""
    text = format_instr(instr) if instr.op != "return" else "return"
    raise VerifyError("\n".join([f"{instr.name}{module} {what}:", *around, f"> {text}"]))
