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

from gnnfx.ir.node_graph import first_computed, node_graph
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
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
        match node_graph(rewriter.program, "protective masks"):
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


def _rank(rewriter: Rewriter, edge_index: Instr, rows: Instr, batch: Instr | None) -> Instr:
    first = first_computed(rewriter.program)
    count = rewriter.insert(first, "aten.sym_size.int", rows, 0)
    return rewriter.insert(first, "degree_cdf", edge_index, count, batch)
