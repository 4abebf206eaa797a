"""Tell observers the in-degrees of their rows, so that each bucket of degrees gets its own scale.

    a: f32[N, 8] = observe(x, 'x')
    y: f32[N, 4] = aten.linear.default(a, w)
  becomes
    n: int[N] = aten.sym_size.int(x, 0)
    b: i64[N] = degree_bucket(edge_index, n)
    a: f32[N, 8] = observe(x, 'x', bucket=b)
    y: f32[N, 4] = aten.linear.default(a, w)

A sum over neighbours grows with their number (Degree-Quant, Tailor et al., ICLR 2021, section 3),
and one scale that covers the largest hub leaves most nodes a few codes.  A row that goes through a
linear layer is scaled back behind it; rows that are summed together have to share one scale.
"""

from __future__ import annotations

from gnnfx.ir.node_graph import first_computed, node_graph
from gnnfx.ir.patterns import readers
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class ScaleByDegree(Pass):
    """Name the bucket of each row to the observers in front of linear layers."""

    name = "scale-by-degree"
    needs = frozenset({"observed"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        assert ctx.policy.quantize is not None
        if ctx.policy.quantize.scales == "tensor":
            return program
        rewriter = Rewriter(program, self.name)
        match node_graph(rewriter.program, "scales by degree"):
            case str(reason):
                for observe in program.find("observe"):
                    ctx.missed(observe, reason)
            case (edge_index, rows, _):
                first = first_computed(rewriter.program)
                count = rewriter.insert(first, "aten.sym_size.int", rows, 0)
                bucket = rewriter.insert(first, "degree_bucket", edge_index, count)
                for observe in rewriter.program.find("observe"):
                    if refusal := _refusal(observe, rows):
                        ctx.missed(observe, f"one scale for all in-degrees: {refusal}")
                    else:
                        rewriter.set_arg(observe, "bucket", bucket)
                        ctx.did(observe, "one scale for each bucket of in-degrees")
        return rewriter.finish()


def _refusal(observe: Instr, rows: Instr) -> str | None:
    if observe.shape[:1] != rows.shape[:1]:
        return "its rows are no nodes"
    summed = [reader.name for reader in readers(observe) if reader.op != "aten.linear.default"]
    return f"{', '.join(summed)} sums its rows together" if summed else None
