"""Compute on matrices where a model carries a middle axis along, such as that of PNA's towers.

    v: f32[N, 1, 8] = aten.view.default(x, [-1, 1, 8])
    r: f32[N, 2, 8] = aten.repeat.default(v, [1, 2, 1])
    m: f32[E, 2, 8] = gather(r, src)
    s: f32[E, 8] = aten.select.int(m, 1, 0)
    y: f32[E, 4] = aten.linear.default(s, w)
  becomes
    m: f32[E, 8] = gather(x, src)
    y: f32[E, 4] = aten.linear.default(m, w)

Passes and kernels know node and edge features as matrices.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext

_VIEWS = {"aten.view.default", "aten.reshape.default"}
_DROPS_UNIT = {*_VIEWS, "aten.squeeze.dim"}
_ADDS_UNIT = {*_VIEWS, "aten.unsqueeze.default"}
_REPEATS = {"aten.repeat.default", "aten.expand.default"}
_POINTWISE = {
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.mul.Tensor",
    "aten.div.Tensor",
    "aten.clamp.default",
    "aten.sqrt.default",
    "aten.relu.default",
    "aten.log.default",
    "aten.le.Scalar",
    "aten.masked_fill.Scalar",
}


class UnbindAxes(Pass):
    """Replace [R, T, C] by matrices [R, C] between the places where the axis comes and goes."""

    name = "unbind-axes"
    needs = frozenset({"raised"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        known = _known_values(rewriter.program)
        matrices: dict[tuple[Instr, int], Instr] = {}
        for instr in rewriter.program.instrs:
            if (place := _taken(instr)) is not None and instr.arg in known:
                rewriter.replace(instr, _matrix(rewriter, instr.arg, place, known, matrices))
        return rewriter.finish()


def _taken(instr: Instr) -> int | None:
    """Which matrix [R, C] of its operand [R, T, C] an instruction is, or None for others."""
    if instr.op not in _DROPS_UNIT and instr.op != "aten.select.int":
        return None
    wide = instr.arg.shape
    if len(wide) != 3 or instr.shape != (wide[0], wide[2]) or not isinstance(wide[1], int):
        return None
    if instr.op == "aten.select.int":
        of_middle = instr.args["dim"] in (1, -2) and isinstance(instr.args["index"], int)
        return int(instr.args["index"]) % wide[1] if of_middle else None
    return 0 if wide[1] == 1 else None


def _known_values(program: Program) -> set[Instr]:
    """Values [R, T, C] whose matrices can be computed by themselves, with nothing done twice."""
    known = {value for value in program.instrs if _is_known(value)}
    size = -1
    while size != len(known):
        size = len(known)
        known = {
            value
            for value in known
            if value.shape[1] == 1
            or all(user in known or _taken(user) is not None for user in value.users)
        }
    return known


def _is_known(value: Instr) -> bool:
    """Whether `value` [R, T, C] comes from an instruction that works on [R, C] as well."""
    shape = value.shape if value.op != "return" else ()
    if len(shape) != 3 or not isinstance(shape[1], int) or not isinstance(shape[2], int):
        return False
    if value.op in ("gather", "scatter"):
        return not _has_heads(value)
    if value.op == "aten.cat.default":
        return value.args["dim"] in (-1, 2)
    if value.op == "aten.stack.default" or value.op in _ADDS_UNIT or value.op in _REPEATS:
        return _opens(value)
    operands = [a for a in value.args.values() if isinstance(a, Instr)]
    return value.op in _POINTWISE and all(
        len(a.shape) < 2 or (len(a.shape) == 3 and a.shape[1] in (1, shape[1])) for a in operands
    )


def _opens(value: Instr) -> bool:
    """Whether matrices of `value` [R, T, C] are, or are part of, what it is made of."""
    rows, count, channels = value.shape
    if value.op == "aten.stack.default":
        return value.args["dim"] in (1, -2) and len(value.arg) == count
    if value.op in _REPEATS:
        return bool(value.arg.shape == (rows, 1, channels))
    return bool(value.arg.shape == (rows, int(count) * int(channels)))


def _has_heads(value: Instr) -> bool:
    """Whether `value` [N, H, C] is an attention's, which is recognized by its axis of heads."""
    if value.op != "scatter" or value.arg.op != "aten.mul.Tensor":
        return False
    factors = (f for f in value.arg.args.values() if isinstance(f, Instr))
    return any(f.op in _ADDS_UNIT and f.arg.op == "edge_softmax" for f in factors)


def _matrix(
    rewriter: Rewriter,
    value: Instr,
    place: int,
    known: set[Instr],
    matrices: dict[tuple[Instr, int], Instr],
) -> Instr:
    """`value` [R, T, C] at `place` of its middle axis: [R, C]."""
    if (value, place) in matrices:
        return matrices[value, place]

    def narrow(operand: Any) -> Any:
        if isinstance(operand, list):
            return [narrow(part) for part in operand]
        if not isinstance(operand, Instr) or len(operand.shape) != 3:
            return operand
        own = 0 if operand.shape[1] == 1 else place
        return _matrix(rewriter, operand, own, known, matrices)

    channels = value.shape[2]
    if value not in known:
        after = Instr(value.node.next)
        while after.op in ("input", "param"):
            after = Instr(after.node.next)
        made = rewriter.insert(after, "aten.select.int", value, 1, place, like=value)
    elif value.op == "aten.stack.default":
        made = value.arg[place]
    elif value.op in _REPEATS:
        made = narrow(value.arg)
    elif value.op in _ADDS_UNIT and value.shape[1] == 1:
        made = value.arg
    elif value.op in _ADDS_UNIT:
        bounds = (1, place * channels, (place + 1) * channels)
        made = rewriter.insert(value, "aten.slice.Tensor", value.arg, *bounds, like=value)
    else:
        args = [narrow(a) for a in value.positional]
        if value.op == "aten.cat.default":
            args = [args[0], -1]
        made = rewriter.insert(value, value.op, *args, like=value, **value.keywords)
    matrices[value, place] = made
    return made
