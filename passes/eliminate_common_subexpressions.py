"""Compute equal things once: instructions with the same op and operands become one.

    s: i64[E] = aten.select.int(edge_index, 0, 0)
    t: i64[E] = aten.select.int(edge_index, 0, 0)
  becomes
    s: i64[E] = aten.select.int(edge_index, 0, 0)

and every use of t uses s, so that layers share the structure of their graph.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from gnnfx.ir.infer import effects
from gnnfx.ir.program import Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class EliminateCommonSubexpressions(Pass):
    """Merge instructions that are sure to give the same value."""

    name = "eliminate-common-subexpressions"

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        first: dict[Any, fx.Node] = {}
        by_node = {i.node: i for i in rewriter.program.instrs}
        for instr in rewriter.program.instrs:
            node = instr.node
            if node.op not in ("call_function", "get_attr") or instr.random or effects(node):
                continue
            key = (node.op, node.target, _key(node.args), _key(node.kwargs))
            known = first.setdefault(key, node)
            if known is not node:
                rewriter.replace(instr, by_node[known])
        return rewriter.finish()


def _key(value: Any) -> Any:
    """A hashable form of arguments that tells 1 from True and from 1.0."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _key(v)) for k, v in value.items()))
    return (type(value), value) if isinstance(value, (bool, int, float)) else value
