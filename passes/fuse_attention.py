"""Fuse scores, softmax and weighted sum of a destination into one pass over its edges.

    s: f32[E, 4] = gather(a_src, src)
    d: f32[E, 4] = gather(a_dst, dst)
    l: f32[E, 4] = aten.leaky_relu.default(s + d, 0.2)
    w: f32[E, 4] = segment_softmax(l, rowptr)
    y: f32[N, 4, 8] = aggregate(x, rowptr, src, w)
  becomes
    y: f32[N, 4, 8] = attend_gat(x, a_src, a_dst, rowptr, src, None, 0.2)

and, where the score is att . leaky_relu(x_src[src] + x_dst[dst]), attend_gatv2.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import is_destination, is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

Fused = tuple[str, tuple[Any, ...]]


class FuseAttention(Pass):
    """Replace softmax-weighted aggregates by one attention op, so that nothing is [E, H, C]."""

    name = "fuse-attention"
    needs = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for aggregate in rewriter.program.find("aggregate"):
            weight = aggregate.args["weight"]
            if weight is None or weight.op != "segment_softmax":
                continue
            match match_attention(aggregate, weight.arg):
                case (op, args):
                    given = [_matrix(rewriter, aggregate, a) if is_param(a) else a for a in args]
                    rewriter.replace(aggregate, rewriter.insert(aggregate, op, *given))
                case str(reason):
                    ctx.missed(aggregate, reason)
        return rewriter.finish()


def match_attention(aggregate: Instr, logits: Instr) -> Fused | str:
    """The attention op and arguments that a softmax-weighted `aggregate` is, or why it is none."""
    if aggregate.args["reduce"] != "sum" or len(aggregate.shape) != 3:
        return "attention weights are used for something else than a sum per head"
    if logits.op == "aten.leaky_relu.default":
        return _gat(aggregate, logits)
    if logits.op == "aten.sum.dim_IntList":
        return _gatv2(aggregate, logits)
    return f"logits come from {logits.op}, which is neither GAT's nor GATv2's score"


def _gat(aggregate: Instr, logits: Instr) -> Fused | str:
    x, rowptr, src = (aggregate.args[k] for k in ("x", "rowptr", "src"))
    terms, a_src, a_dst, a_edge = _terms(logits.arg), None, None, None
    for term in terms:
        if term.op == "gather" and term.args["index"] == src and a_src is None:
            a_src = term.arg
        elif term.op == "gather" and is_destination(term.args["index"], rowptr) and a_dst is None:
            a_dst = term.arg
        elif a_edge is None:
            a_edge = term
        else:
            return "the score has more than a source, a destination and an edge term"
    if a_src is None or a_dst is None:
        return "the score lacks a source or a destination term"
    slope = logits.args["negative_slope"]
    return "attend_gat", (x, a_src, a_dst, rowptr, src, a_edge, slope)


def _gatv2(aggregate: Instr, logits: Instr) -> Fused | str:
    x, rowptr, src = (aggregate.args[k] for k in ("x", "rowptr", "src"))
    product = logits.arg
    if logits.args["dim"] != [-1] or logits.args["keepdim"] or product.op != "aten.mul.Tensor":
        return "the score is not a dot product with an attention vector"
    hidden, att = product.args["self"], product.args["other"]
    if is_param(hidden):
        hidden, att = att, hidden
    if not is_param(att) or hidden.op != "aten.leaky_relu.default":
        return "the score is not a dot product of a leaky ReLU with a parameter"
    x_dst = None
    for term in (terms := _terms(hidden.arg)):
        if term.op == "gather" and term.args["index"] == src and term.arg == x:
            continue
        if (
            term.op != "gather"
            or not is_destination(term.args["index"], rowptr)
            or x_dst is not None
        ):
            return "the score has other terms than x_src[src] + x_dst[dst]"
        x_dst = term.arg
    if x_dst is None or len(terms) != 2:
        return "the score has other terms than x_src[src] + x_dst[dst]"
    slope = hidden.args["negative_slope"]
    return "attend_gatv2", (x, x_dst, att, rowptr, src, slope)


def _matrix(rewriter: Rewriter, before: Instr, attention: Instr) -> Instr:
    """The attention vector as [H, C], which models keep as [1, H, C]."""
    shape = list(attention.shape[-2:])
    return rewriter.insert(before, "aten.view.default", attention, shape)


def _terms(value: Instr) -> list[Instr]:
    """The summands of nested additions."""
    if value.op == "aten.add.Tensor" and value.args["alpha"] == 1:
        left, right = value.args["self"], value.args["other"]
        if isinstance(left, Instr) and isinstance(right, Instr):
            return [*_terms(left), *_terms(right)]
    return [value]
