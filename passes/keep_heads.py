"""Sum weighted rows head by head, and join the heads of nodes, not of edges, as for HANConv.

    m: f32[E, 2, 8] = aten.mul.Tensor(j, w)            w: f32[E, 2, 1] = a softmax over edges
    r: f32[E, 16] = aten.view.default(m, [-1, 16])
    y: f32[N, 16] = scatter(r, dst, n, 'sum')
  becomes
    z: f32[N, 2, 8] = scatter(m, dst, n, 'sum')
    y: f32[N, 16] = aten.view.default(z, [-1, 16])

and rows that are gathered and then parted into heads are parted first.  Behind it, an attention is
recognized by the axis of its heads.
"""

from __future__ import annotations

from gnnfx.ir.patterns import RESHAPES, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext
from gnnfx.passes.attention_scores import softmax_of


class KeepHeads(Pass):
    """Move the reshape that joins heads of softmax-weighted messages behind their sum."""

    name = "keep-heads"
    needs = frozenset({"raised"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for heads in rewriter.program.find(*RESHAPES):
            if _parts_heads(heads):
                rows, index = heads.arg.positional
                parted = rewriter.insert(heads, "aten.view.default", rows, [-1, *heads.shape[1:]])
                rewriter.replace(heads, rewriter.insert(heads, "gather", parted, index))
        for scatter in rewriter.program.find("scatter"):
            joined, dst, num_rows, reduce = scatter.args.values()
            if reduce != "sum" or not _joins_heads(joined):
                continue
            by_head = rewriter.insert(scatter, "scatter", joined.arg, dst, num_rows, reduce)
            size = [-1, joined.shape[1]]
            rewriter.replace(scatter, rewriter.insert(scatter, "aten.view.default", by_head, size))
        return rewriter.finish()


def _parts_heads(heads: Instr) -> bool:
    """Whether `heads` [E, H, C] are views of gathered rows [E, H * C] that a softmax weighs."""
    if heads.arg.op != "gather" or len(heads.shape) != 3 or len(heads.arg.shape) != 2:
        return False
    same_rows = heads.shape[0] == heads.arg.shape[0]
    return same_rows and any(map(_weighs, heads.users))


def _joins_heads(joined: Instr) -> bool:
    """Whether `joined` [E, H * C] is a view of rows [E, H, C] times a softmax [E, H]."""
    if joined.op not in RESHAPES or sole_user(joined) is None or len(joined.shape) != 2:
        return False
    weighed = joined.arg
    alone = sole_user(weighed) is not None and weighed.shape[:1] == joined.shape[:1]
    return alone and _weighs(weighed)


def _weighs(product: Instr) -> bool:
    """Whether `product` [E, H, C] is one with a softmax [E, H]."""
    if product.op != "aten.mul.Tensor" or len(product.shape) != 3:
        return False
    factors = (product.args["self"], product.args["other"])
    return any(isinstance(f, Instr) and softmax_of(f) is not None for f in factors)
