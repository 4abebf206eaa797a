"""Compute on matrices where a model carries an axis of length 1 along, such as PNA's one tower.

    v: f32[N, 1, 8] = aten.view.default(x, [-1, 1, 8])
    m: f32[E, 1, 8] = gather(v, src)
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

_ADDS_AXIS = {
    "aten.view.default",
    "aten.reshape.default",
    "aten.unsqueeze.default",
    "aten.stack.default",
}
_DROPS_AXIS = {
    "aten.view.default",
    "aten.reshape.default",
    "aten.squeeze.dim",
    "aten.select.int",
}
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


class DropUnitAxes(Pass):
    """Replace [R, 1, C] by [R, C] between the places where the axis comes and goes."""

    name = "drop-unit-axes"
    needs = frozenset({"raised"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        matrices: dict[Instr, Instr] = {}
        for instr in rewriter.program.instrs:
            if instr.op not in _DROPS_AXIS or not _drops_middle(instr):
                continue
            if _is_known(instr.arg) and not _has_heads(instr.arg):
                rewriter.replace(instr, _matrix(rewriter, instr.arg, matrices))
        return rewriter.finish()


def _drops_middle(instr: Instr) -> bool:
    wide = instr.arg.shape
    return len(wide) == 3 and wide[1] == 1 and instr.shape == (wide[0], wide[2])


def _has_heads(value: Instr) -> bool:
    """Whether `value` [N, 1, C] is an attention's, which is recognized by its axis of heads."""
    if value.op != "scatter" or value.arg.op != "aten.mul.Tensor":
        return False
    factors = (f for f in value.arg.args.values() if isinstance(f, Instr))
    return any(f.op in _ADDS_AXIS and f.arg.op == "edge_softmax" for f in factors)


def _is_known(value: Instr) -> bool:
    """Whether `value` [R, 1, C] comes from an instruction that works on [R, C] as well."""
    if len(value.shape) != 3 or value.shape[1] != 1 or not isinstance(value.shape[2], int):
        return False
    if value.op in ("gather", "scatter") or _before_axis(value) is not None:
        return True
    if value.op == "aten.cat.default":
        return value.args["dim"] in (-1, 2)
    operands = [a for a in value.args.values() if isinstance(a, Instr)]
    return value.op in _POINTWISE and all(
        len(a.shape) < 2 or (len(a.shape) == 3 and a.shape[1] == 1) for a in operands
    )


def _before_axis(value: Instr) -> Instr | None:
    """The matrix [R, C] that a reshape or a stack gives a middle axis, or None."""
    if value.op not in _ADDS_AXIS:
        return None
    parts = value.arg if isinstance(value.arg, list) else [value.arg]
    same = len(parts) == 1 and parts[0].shape == (value.shape[0], value.shape[2])
    return parts[0] if same else None


def _matrix(rewriter: Rewriter, value: Instr, matrices: dict[Instr, Instr]) -> Instr:
    """`value` [R, 1, C] as [R, C]."""
    if value not in matrices:
        matrices[value] = _make_matrix(rewriter, value, matrices)
    return matrices[value]


def _make_matrix(rewriter: Rewriter, value: Instr, matrices: dict[Instr, Instr]) -> Instr:
    if (before := _before_axis(value)) is not None:
        return before
    if not _is_known(value):
        after = Instr(value.node.next)
        while after.op in ("input", "param"):
            after = Instr(after.node.next)
        return rewriter.insert(after, "aten.view.default", value, [-1, value.shape[2]], like=value)

    def narrow(operand: Any) -> Any:
        if isinstance(operand, list):
            return [narrow(part) for part in operand]
        wide = isinstance(operand, Instr) and len(operand.shape) == 3
        return _matrix(rewriter, operand, matrices) if wide else operand

    args = [narrow(a) for a in value.positional]
    if value.op == "aten.cat.default":
        args = [args[0], -1]
    return rewriter.insert(value, value.op, *args, like=value, **value.keywords)
