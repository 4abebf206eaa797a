"""Tell each observer how high its rows rank by in-degree: Degree-Quant's protective masks.

    a: f32[N, 8] = observe(x, 'x')
  becomes
    n: int[N] = aten.sym_size.int(x, 0)
    r: f32[N] = degree_cdf(edge_index, n, batch)
    a: f32[N, 8] = observe(x, 'x', r)

Values of edges, whose observers name the node of each row, go by the rank of that node.  What a
layer's own perceptron reads of its sums (GIN's) is rounded for all nodes, as in the paper's code: a
batch norm behind it would otherwise take its statistics from rows that integers never hold.
Ranks depend on the graph alone and are computed once for each graph; which rows are protected is
drawn at run time.
"""

from __future__ import annotations

from gnnfx.ir.node_graph import first_computed, node_graph
from gnnfx.ir.patterns import readers
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.ir.types import Domain
from gnnfx.pass_manager import Pass, PassContext

_SUMS = ("scatter", "aggregate", "aggregate_many", "aggregate_messages")


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
                    of_edges = observe.args["owner"] is not None
                    if of_edges or (on_nodes and not _updates(observe)):
                        rewriter.set_arg(observe, "rank", rank)
        return rewriter.finish()


def _rank(rewriter: Rewriter, edge_index: Instr, rows: Instr, batch: Instr | None) -> Instr:
    first = first_computed(rewriter.program)
    count = rewriter.insert(first, "aten.sym_size.int", rows, 0)
    return rewriter.insert(first, "degree_cdf", edge_index, count, batch)


def _updates(observe: Instr) -> bool:
    """Whether it is linear layers alone that read the value, each of the layer that summed it."""
    layers = tuple(_summing(observe))
    inside = all(
        reader.op == "aten.linear.default" and reader.module.startswith(layers)
        for reader in readers(observe)
    )
    return bool(layers) and inside


def _summing(value: Instr) -> set[str]:
    """Beginnings of the paths in the layers whose sums over neighbours reach `value` first."""
    found: set[str] = set()
    seen: set[Instr] = set()
    wanted = [value]
    while wanted:
        instr = wanted.pop()
        if instr in seen or instr.domain in (Domain.STRUCTURE, Domain.PARAMETER):
            continue
        seen.add(instr)
        if instr.op in _SUMS:
            found.add(instr.module.removesuffix("aggr_module"))
        else:
            wanted += instr.inputs
    return found
