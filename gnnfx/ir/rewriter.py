"""Edit a program: insert, replace, and get back the same object when nothing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from gnnfx.ir.infer import annotate, effects, infer_anew
from gnnfx.ir.program import Instr, Program, op_target, set_record, unwrap
from gnnfx.ir.types import Domain, Record


class Rewriter:
    """Works on a copy of `program`; `finish` returns the original if no edit was made."""

    def __init__(self, program: Program, origin: str) -> None:
        self._original = program
        self._origin = origin
        self._changed = False
        self.program = program.copy()

    def insert(
        self, before: Instr, op: str, *args: Any, like: Instr | None = None, **kwargs: Any
    ) -> Instr:
        """A new call of `op` in front of `before`, reported under the module of `like`."""
        graph = self.program.graph
        named = {k: unwrap(v) for k, v in kwargs.items() if v is not None}
        with graph.inserting_before(before.node):
            node = graph.call_function(op_target(op), tuple(unwrap(args)), named)
        return self._finish_node(node, (like or before).module)

    def param(self, user: Instr, name: str, tensor: Tensor) -> Instr:
        """A reference to a tensor that the program owns from now on under a free name.

        It stands at the top, so that every instruction may use it, and is reported under the
        module of `user`.
        """
        unique, count = name, 0
        while unique in self.program.tensors:
            count += 1
            unique = f"{name}_{count}"
        self.program.tensors[unique] = tensor
        first = next(n for n in self.program.graph.nodes if n.op not in ("placeholder", "get_attr"))
        with self.program.graph.inserting_before(first):
            node = self.program.graph.get_attr(unique)
        return self._finish_node(node, user.module)

    def set_tensor(self, instr: Instr, tensor: Tensor) -> None:
        """Give the tensor behind a `param` instruction other values or another shape."""
        self.program.tensors[instr.param] = tensor
        self._changed = True

    def take_sizes(self, instr: Instr, results: list[Instr]) -> None:
        """Give the results of `instr`, whose sizes the data decides, the types of `results`."""
        instr.node.meta["val"] = [result.fake for result in results]
        set_record(instr, replace(instr.record, type=self.program.type_of(instr.fake)))

    def replace(self, old: Instr, new: Instr) -> None:
        """Let every user of `old` use `new` instead."""
        if old.node is new.node:
            return
        old.node.replace_all_uses_with(new.node, delete_user_cb=lambda n: n is not new.node)
        self._changed = True

    def set_arg(self, instr: Instr, name: str, value: Any) -> None:
        """Change one argument of `instr` by name."""
        schema = [a.name for a in instr.node.target._schema.arguments]  # type: ignore[union-attr]
        position = schema.index(name)
        if position < len(instr.node.args):
            instr.node.update_arg(position, unwrap(value))
        else:
            instr.node.update_kwarg(name, unwrap(value))
        self._changed = True

    def finish(self) -> Program:
        """The edited program, dead code dropped and types inferred, or the original."""
        if not self._changed:
            return self._original
        drop_dead(self.program.graph)
        used = {n.target for n in self.program.graph.nodes if n.op == "get_attr"}
        self.program.tensors = {k: v for k, v in self.program.tensors.items() if k in used}
        return annotate(self.program)

    def _finish_node(self, node: fx.Node, module: str) -> Instr:
        instr = Instr(node)
        type_ = self.program.type_of(infer_anew(self.program, node))
        set_record(instr, Record(type_, Domain.OTHER, module, self._origin))
        self._changed = True
        return instr


def drop_dead(graph: fx.Graph) -> None:
    """Remove instructions whose results nobody uses; inputs stay."""
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users and not effects(node):
            graph.erase_node(node)
