"""Programs as networkx graphs, for drawing and for questions such as "what does y depend on?".

Nodes carry op, type, domain, module, origin and cost; edges carry the names of the arguments that
the value is used as.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import Dim


@dataclass(frozen=True, slots=True)
class SizedCost:
    """The declared cost of one call: numbers, or expressions over the program's axes."""

    flops: Dim
    bytes: Dim


def to_networkx(program: Program) -> nx.DiGraph:
    """A directed graph with one node for each instruction, in program order.

    Node attributes: op, type and domain (text), module, origin (the pass that made it) and cost
    (SizedCost, or None for ops that declare none).  Edge attribute: args, a tuple of names.
    """
    graph = nx.DiGraph(name=program.name)
    for instr in program.instrs:
        record = instr.record
        graph.add_node(
            instr.name,
            op=instr.op,
            type="" if record.type is None else str(record.type),
            domain=record.domain.value,
            module=record.module,
            origin=record.origin,
            cost=cost_of(program, instr),
        )
        for value, names in used_values(instr).items():
            graph.add_edge(value, instr.name, args=names)
    return graph


def used_values(instr: Instr) -> dict[str, tuple[str, ...]]:
    """The values that `instr` reads, each with the names of the arguments it is read as."""
    named = {"result": instr.positional} if instr.op == "return" else instr.args
    used: dict[str, tuple[str, ...]] = {}
    for name, arg in named.items():
        for value in _instrs_in(arg):
            used[value.name] = (*used.get(value.name, ()), name)
    return used


def _instrs_in(arg: Any) -> Iterator[Instr]:
    return (leaf for leaf in pytree.tree_leaves(arg) if isinstance(leaf, Instr))


def cost_of(program: Program, instr: Instr) -> SizedCost | None:
    """The declared cost of `instr` on the types of its arguments, or None if it declares none.

    None too if the cost needs to know whether a size is zero or how it compares to another.
    """
    if instr.definition is None:
        return None
    fakes = pytree.tree_map_only(Instr, lambda i: i.fake, list(instr.args.values()))
    assert program.mode.shape_env is not None
    with program.mode, program.mode.shape_env.suppress_guards():
        try:
            cost = instr.definition.cost(*fakes)
        except GuardOnDataDependentSymNode:
            return None
    return SizedCost(program.dim(cost.flops), program.dim(cost.bytes))
