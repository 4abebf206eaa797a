"""The one graph that a program runs on, where it has one kind of nodes."""

from __future__ import annotations

import torch

from gnnfx.ir.infer import axis_domains, structure_values
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import Dim, IntType


def node_graph(program: Program, purpose: str) -> tuple[Instr, Instr, Instr | None] | str:
    """The edge index, an input with a row a node, and the batch vector; or what is missing.

    purpose: what needs them, for the reason.
    """
    indices = [i for i in program.inputs if len(i.shape) == 2 and i.shape[0] == 2]
    indices = [i for i in indices if i.dtype in (torch.int64, torch.int32)]
    if len(indices) != 1:
        return f"{purpose} need one edge_index [2, E] among the inputs, found {len(indices)}"
    axes = {_rows(c) for c in program.find("compress") if _reads(c.args["dst"], indices[0])}
    on_nodes = [i for i in program.inputs if i.shape and i.shape[0] in axes]
    if len(axes) != 1 or not on_nodes:
        return f"{purpose} need one kind of nodes, and an input with a row for each"
    structural = structure_values(program, axis_domains(program))
    batches = [i for i in on_nodes if len(i.shape) == 1 and i.name in structural]
    integers = [i for i in batches if i.dtype is not None and not i.dtype.is_floating_point]
    return indices[0], on_nodes[0], integers[0] if integers else None


def _rows(compress: Instr) -> Dim | None:
    count = compress.args["num_dst"]
    if not isinstance(count, Instr):
        return int(count)
    return count.type.value if isinstance(count.type, IntType) else None


def _reads(value: Instr, source: Instr) -> bool:
    """Whether `value` is computed from `source`."""
    return value == source or any(_reads(i, source) for i in value.inputs)


def first_computed(program: Program) -> Instr:
    """The first instruction that computes something."""
    return next(i for i in program.instrs if i.op not in ("input", "param"))
