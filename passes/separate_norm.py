"""Split an edge weight c[src] * c[dst] into a row scale before and one after the sum.

    w: f32[E] = gather(c, src) * gather(c, dst)
    y: f32[N, 8] = aggregate(x, rowptr, src, w)
  becomes
    s: f32[N, 8] = aten.mul.Tensor(x, c)
    y: f32[N, 8] = aggregate(s, rowptr, src, row_scale=c)

so that integer codes are summed without a weight per edge: the first scale goes into the
quantizer of the rows, the second into the epilogue.  Float rows, of which a scaled copy would
have to be written, keep the weight c[src]; c[dst] still need not be read for each edge.
"""

from __future__ import annotations

from gnnfx.ir.patterns import is_destination, row_vector
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext


class SeparateNorm(Pass):
    """Take factors that belong to a node out of edge weights.

    sources: also those of the node that an edge comes from, which makes a scaled copy of its rows.
    """

    name = "separate-norm"
    needs = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def __init__(self, sources: bool = True) -> None:
        self.sources = sources

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for aggregate in rewriter.program.find("aggregate"):
            if aggregate.args["weight"] is None or len(aggregate.shape) != 2:
                continue
            if (separated := _separate(rewriter, aggregate, self.sources)) is not None:
                rewriter.replace(aggregate, separated)
            elif self.sources:
                ctx.missed(aggregate, _refusal(aggregate))
        return rewriter.finish()


def _refusal(aggregate: Instr) -> str:
    if aggregate.args["reduce"] not in ("sum", "mean"):
        return "a maximum or minimum does not scale with its weights"
    if aggregate.args["self_weight"] is not None:
        return "its own row is added without the weight"
    return "the edge weight has no factor that belongs to a node"


def _separate(rewriter: Rewriter, aggregate: Instr, sources: bool) -> Instr | None:
    args = aggregate.args
    if args["reduce"] not in ("sum", "mean") or args["self_weight"] is not None:
        return None
    before, after, rest = [], [], []
    for factor in _factors(args["weight"]):
        if factor.op == "gather" and len(factor.arg.shape) == 1:
            if sources and factor.args["index"] == args["src"]:
                before.append(factor.arg)
                continue
            if is_destination(factor.args["index"], args["rowptr"]):
                after.append(factor.arg)
                continue
        rest.append(factor)
    if not before and not after:
        return None
    x = args["x"]
    for scale in before:
        column = rewriter.insert(aggregate, "aten.unsqueeze.default", scale, 1)
        x = rewriter.insert(aggregate, "aten.mul.Tensor", x, column)
    new = {**args, "x": x, "weight": _product(rewriter, aggregate, rest)}
    new["row_scale"] = _product(rewriter, aggregate, [*after, *_given(args["row_scale"])])
    return rewriter.insert(aggregate, "aggregate", **new)


def _factors(weight: Instr) -> list[Instr]:
    """The factors [E] of nested products."""
    if weight.op == "aten.mul.Tensor":
        left, right = row_vector(weight.args["self"]), row_vector(weight.args["other"])
        if left is not None and right is not None:
            return [*_factors(left), *_factors(right)]
    return [weight]


def _product(rewriter: Rewriter, before: Instr, factors: list[Instr]) -> Instr | None:
    if not factors:
        return None
    product = factors[0]
    for factor in factors[1:]:
        product = rewriter.insert(before, "aten.mul.Tensor", product, factor)
    return product


def _given(value: Instr | None) -> list[Instr]:
    return [] if value is None else [value]
