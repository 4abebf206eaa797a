"""Tell each observer how high its rows rank by in-degree: Degree-Quant's protective masks.

    a: f32[N, 8] = observe(x, 'x')
  becomes
    n: int[N] = aten.sym_size.int(x, 0)
    r: f32[N] = degree_cdf(edge_index, n, batch)
    a: f32[N, 8] = observe(x, 'x', r)

Values of edges, whose observers name the node of each row, go by the rank of that node.
Ranks depend on the graph alone and are computed once for each graph; which rows are protected is
drawn at run time.
"""

from __future__ import annotations

import torch

from gnnfx.ir.infer import axis_domains, structure_values
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.ir.types import Dim, IntType
from gnnfx.pass_manager import Pass, PassContext


class ProtectNodes(Pass):
    """Give observers of node values the ranks that protective masks are drawn by."""

    name = "protect-nodes"
    needs = frozenset({"observed"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        quantize = ctx.policy.quantize
        if quantize is None or quantize.training.protect is None or any(program.find("degree_cdf")):
            return program
        rewriter = Rewriter(program, self.name)
        match _graph(rewriter.program):
            case str(reason):
                for observe in program.find("observe"):
                    ctx.missed(observe, reason)
            case (edge_index, rows, batch):
                rank = _rank(rewriter, edge_index, rows, batch)
                for observe in rewriter.program.find("observe"):
                    on_nodes = observe.shape[:1] == rows.shape[:1]
                    if on_nodes or observe.args["owner"] is not None:
                        rewriter.set_arg(observe, "rank", rank)
        return rewriter.finish()


def _graph(program: Program) -> tuple[Instr, Instr, Instr | None] | str:
    """The edge index, an input with a row a node, and the batch vector; or what is missing."""
    indices = [i for i in program.inputs if len(i.shape) == 2 and i.shape[0] == 2]
    indices = [i for i in indices if i.dtype in (torch.int64, torch.int32)]
    if len(indices) != 1:
        return f"protective masks need one edge_index [2, E] among the inputs, found {len(indices)}"
    axes = {_rows(c) for c in program.find("compress") if _reads(c.args["dst"], indices[0])}
    on_nodes = [i for i in program.inputs if i.shape and i.shape[0] in axes]
    if len(axes) != 1 or not on_nodes:
        return "protective masks need one kind of nodes, and an input with a row for each"
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


def _rank(rewriter: Rewriter, edge_index: Instr, rows: Instr, batch: Instr | None) -> Instr:
    first = next(i for i in rewriter.program.instrs if i.op not in ("input", "param"))
    count = rewriter.insert(first, "aten.sym_size.int", rows, 0)
    return rewriter.insert(first, "degree_cdf", edge_index, count, batch)
