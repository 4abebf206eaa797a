"""Follow the axes of one instruction: by the rule of its op, or else they keep their width."""

from __future__ import annotations

import gnnfx.pruning.shape_rules  # noqa: F401  (declares its rules)
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import TensorType
from gnnfx.pruning.labels import Layout, Unfollowed
from gnnfx.pruning.rules import RULES, Flow

INPUT = "is an input of the model"


def followed(flow: Flow, instr: Instr, program: Program) -> Layout | list[Layout]:
    """The layout of one value; what no rule follows stays as wide as it is."""
    if instr.op == "param":
        layout = flow.fresh(instr.shape, zero=True)
        if not program.tensor(instr).is_floating_point():
            flow.freeze(layout, range(len(layout.axes)), "belongs to a tensor of integers")
        return layout
    if instr.op == "getitem":
        found = flow.layouts.get(instr.arg.name)
        if isinstance(found, list):
            return found[int(instr.positional[1])]
    try:
        if instr.op in RULES:
            layouts = RULES[instr.op](flow, instr)
            if isinstance(layouts, Layout):
                return _normal(flow, layouts)
            return [_normal(flow, layout) for layout in layouts]
        reason = f"meets {instr.op}, which cannot be followed"
    except Unfollowed as error:
        reason = f"{error} at {instr.name}"
    if instr.op == "input":
        reason = INPUT
    for operand in instr.inputs:
        keep_all(flow, operand, reason)
    flow.layouts[instr.name] = unknown(flow, instr)
    keep_all(flow, instr, reason)
    return flow.layouts[instr.name]


def unknown(flow: Flow, instr: Instr) -> Layout | list[Layout]:
    """The layout of a value of which nothing is known."""
    types = getattr(instr.type, "items", [instr.type])
    shapes = [t.shape if isinstance(t, TensorType) else () for t in types]
    layouts = [flow.fresh(shape, zero=False) for shape in shapes]
    return layouts if len(layouts) > 1 else layouts[0]


def _normal(flow: Flow, layout: Layout) -> Layout:
    """An axis that a rule narrowed to one channel keeps it, as axes of size 1 have no labels."""
    for dim, labels in enumerate(layout.axes):
        if labels is not None and len(labels) == 1:
            flow.channels.keep(labels, "is all there is of a value")
            layout = layout.replace(dim, None, False)
    return layout


def keep_all(flow: Flow, instr: Instr, reason: str) -> None:
    """Forbid the removal of any position of the value of `instr`."""
    found = flow.layouts.get(instr.name, [])
    for one in found if isinstance(found, list) else [found]:
        flow.freeze(one, range(len(one.axes)), reason)
