"""One spelling for each thing: no copies, no parts that are the whole, no factors of 1.

    c: f32[N, 8] = aten.clone.default(x)
    w: f32[E] = aten.mul.Tensor(v, ones)
    y: f32[N, 8] = aten.add.Tensor(c, b)
  becomes
    y: f32[N, 8] = aten.add.Tensor(x, b)

and every use of w uses v.
"""

from __future__ import annotations

import sys
from typing import TypeGuard

from gnnfx.ir.patterns import constant_value
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext

_COPIES = {
    "aten.clone.default",
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.contiguous.default",
    "dropout",
}
_VIEWS = {"aten.view.default", "aten.reshape.default"}
_SAME_SHAPE = {*_VIEWS, "aten.expand.default"}
_WHOLES = {"aten.slice.Tensor", "aten.repeat.default", "aten.cat.default"}
_CASTS = {"aten._to_copy.default", "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout"}
_NEUTRAL = {"aten.mul.Tensor": 1.0, "aten.add.Tensor": 0.0, "aten.div.Tensor": 1.0}


class Canonicalize(Pass):
    """Remove instructions that compute nothing.

    training: keep `dropout`, and `detach`, which computes nothing but stops gradients.
    """

    name = "canonicalize"
    gives = frozenset({"canonical"})

    def __init__(self, training: bool = False) -> None:
        self.kept = {"aten.detach.default", "dropout"} if training else set()

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for instr in rewriter.program.instrs:
            if instr.op in self.kept:
                continue
            if (same := _same_value(instr)) is not None:
                rewriter.replace(instr, same)
        return rewriter.finish()


def _same_value(instr: Instr) -> Instr | None:
    """An operand that `instr` equals, or None."""
    if instr.op in _COPIES:
        return _operand(instr.arg) if _strides(instr) == _strides(instr.arg) else None
    if instr.op == "aten.copy.default" and (source := instr.args["src"]).type == instr.type:
        return _operand(source) if _strides(instr) == _strides(source) else None
    if instr.op in _WHOLES and instr.type == _first(instr).type and _is_whole(instr):
        return _first(instr)
    if instr.op in _SAME_SHAPE | _CASTS and instr.arg.type == instr.type:
        same_device = instr.fake.device == instr.arg.fake.device
        return _operand(instr.arg) if same_device else None
    if instr.op in _VIEWS and (origin := _viewed(instr)).type == instr.type:
        return origin
    if instr.op == "aten.slice.Tensor" and instr.arg.type == instr.type:
        return _operand(instr.arg) if instr.args["step"] == 1 else None
    if instr.op in _NEUTRAL and instr.args.get("alpha", 1) == 1:
        left, right = instr.args["self"], instr.args["other"]
        neutral = _NEUTRAL[instr.op]
        if constant_value(right) == neutral and _is_like(left, instr):
            return left
        commutes = instr.op != "aten.div.Tensor"
        if commutes and constant_value(left) == neutral and _is_like(right, instr):
            return right
    return None


def _viewed(instr: Instr) -> Instr:
    """What views of views show."""
    while instr.op in _VIEWS and isinstance(instr.arg, Instr):
        instr = instr.arg
    return instr


def _first(instr: Instr) -> Instr:
    """The tensor that `instr` takes a part of, repeats, or joins with others."""
    value: Instr = instr.arg[0] if isinstance(instr.arg, list) else instr.arg
    return value


def _is_whole(instr: Instr) -> bool:
    """Whether a slice takes all there is, a repetition repeats once, or one tensor is joined."""
    if instr.op == "aten.slice.Tensor":
        start, end, step = (instr.args[k] for k in ("start", "end", "step"))
        return start in (None, 0) and (end is None or end == sys.maxsize) and step == 1
    if instr.op == "aten.repeat.default":
        return all(count == 1 for count in instr.args["repeats"])
    return len(instr.arg) == 1


def _is_like(value: object, instr: Instr) -> TypeGuard[Instr]:
    return isinstance(value, Instr) and value.type == instr.type


def _strides(instr: Instr) -> list[str]:
    """Strides as text: comparing symbolic sizes would add guards on them."""
    return [str(s) for s in instr.fake.stride()]


def _operand(value: object) -> Instr | None:
    return value if isinstance(value, Instr) else None
