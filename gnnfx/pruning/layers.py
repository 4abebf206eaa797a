"""Message-passing layers that something leads around: without them, that is what is left.

    h: f32[N, 8] = scatter(messages, dst, n, 'sum')
    y: f32[N, 8] = aten.linear.default(h, w, b)
    z: f32[N, 8] = aten.add.Tensor(x, y)

is a layer that can go, as z is x where w and b are zero: a residual branch, or what a layer adds of
its neighbours to what it makes of the node itself.  A layer without a path around it stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gnnfx.ir.patterns import is_feature, is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.pruning.follow import followed, unknown
from gnnfx.pruning.norm_rules import STATISTICS, norm_tensors
from gnnfx.pruning.rules import Flow

_Operand = Literal["self", "other"]


@dataclass(frozen=True)
class Layer:
    """A branch that passes messages and is added to something else.

    total: the sum.
    rest: the operand of `total` that is left without the branch.
    branch: the other operand.
    alone: what serves the branch and nothing else, in order.
    tensors: names of its own float tensors, running statistics excluded.
    removable: whether it makes zeros, of any graph, once these are zero.
    """

    total: Instr
    rest: _Operand
    branch: Instr
    alone: tuple[Instr, ...]
    tensors: tuple[str, ...]
    removable: bool


def find_layers(program: Program) -> list[Layer]:
    """Those of a float program, in order; what is a part of one that can go is left out."""
    instrs, statistics = program.instrs, norm_tensors(program, *STATISTICS)
    adds = list(program.find("aten.add.Tensor"))
    found = [layer for add in adds for layer in _at(program, instrs, statistics, add)]
    within = {instr.name for layer in found if layer.removable for instr in layer.alone}
    return [layer for layer in found if layer.total.name not in within]


def passes_messages(instr: Instr) -> bool:
    """Whether `instr` reduces features of edges to nodes."""
    return instr.op == "scatter" and is_feature(instr)


def _at(
    program: Program, instrs: list[Instr], statistics: frozenset[str], add: Instr
) -> Iterator[Layer]:
    operands: list[tuple[_Operand, _Operand]] = [("self", "other"), ("other", "self")]
    for rest, other in operands:
        left, branch = add.args[rest], add.args[other]
        if not isinstance(branch, Instr) or not isinstance(left, Instr) or is_param(left):
            continue
        if add.args["alpha"] != 1 or sole_user(branch) is None:
            continue
        if left.shape != add.shape or left.dtype != add.dtype:
            continue
        alone = _alone(instrs, branch)
        if not any(map(passes_messages, alone)):
            continue
        params = [i.param for i in alone if i.op == "param"]
        floats = [p for p in params if program.tensors[p].is_floating_point()]
        tensors = tuple(p for p in floats if p not in statistics)
        yield Layer(add, rest, branch, alone, tensors, _makes_zeros(program, branch, alone))


def _alone(instrs: list[Instr], value: Instr) -> tuple[Instr, ...]:
    """`value` and whatever nothing else is made of."""
    names = {value.name}
    for instr in reversed(instrs):
        users = instr.users
        if users and all(user.name in names for user in users):
            names.add(instr.name)
    return tuple(i for i in instrs if i.name in names)


def _makes_zeros(program: Program, branch: Instr, alone: tuple[Instr, ...]) -> bool:
    """Whether zeros in the tensors among `alone` make `branch` zero, whatever comes from others."""
    flow = Flow()
    for instr in alone:
        for operand in instr.inputs:
            if operand.name not in flow.layouts:
                flow.layouts[operand.name] = unknown(flow, operand)
        flow.layouts[instr.name] = followed(flow, instr, program)
    made = flow.of(branch)
    return bool(made.zero) and made.zero[-1]
