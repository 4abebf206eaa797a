"""Aggregations that each have a linear layer of their own, and are added up, become one op.

    a: f32[N, 8] = aggregate(x, rowptr, src, None, 'mean')
    b: f32[N, 4] = linear(a, w)
    c: f32[N, 4] = linear(x, v)
    y: f32[N, 4] = aggregate(c, rowptr_1, src_1, None, 'mean', residual=b)
  becomes
    y: f32[N, 4] = aggregate_linear_sum([x, x], [rowptr, rowptr_1], [src, src_1], [w, v], 'mean')

so that nodes without edges of a relation are not multiplied with its weight, and the graph at hand
decides whether rows are multiplied before or after they are reduced.  A linear layer of the nodes
themselves, to which all is added or that is added to all, becomes a part of it (`own`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnnfx.ir.patterns import sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

_SUM = "aggregate_linear_sum"


class FuseRelations(Pass):
    """Gather the terms of a sum over relations, or the one term of GraphSAGE."""

    name = "fuse-relations"
    needs = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        absorbed: set[Instr] = set()
        for instr in reversed(list(rewriter.program.find("linear", "aggregate"))):
            if instr in absorbed:
                continue
            above = _own_above(instr)
            last = _term(instr if above is None else instr.args["residual"])
            if last is None:
                continue
            terms = [last]
            while (before := _term(terms[0].added)) is not None and _may_precede(before, last):
                terms.insert(0, before)
            below = _own_below(terms[0].added, instr) if above is None else None
            own, bias = above or below, instr.args["bias"]
            fused = rewriter.insert(
                instr,
                _SUM,
                [t.x for t in terms],
                [t.rowptr for t in terms],
                [t.src for t in terms],
                [t.weight for t in terms],
                last.reduce,
                bias=bias if own is None or own.bias is None else own.bias,
                residual=(below or terms[0]).added,
                activation=instr.args["activation"],
                own=own and own.x,
                own_weight=own and own.weight,
                like=instr,
            )
            rewriter.replace(instr, fused)
            absorbed.update(t.instr for t in terms)
            ctx.did(fused, "multiplies the rows that have edges")
        return rewriter.finish()


@dataclass(frozen=True)
class _Term:
    """A sum or mean over edges and a linear layer, in either order, and what it is added to."""

    instr: Instr
    x: Instr
    rowptr: Instr
    src: Instr
    weight: Instr
    reduce: str
    added: Instr | None


def _term(instr: Any) -> _Term | None:
    if not isinstance(instr, Instr) or instr.op not in ("linear", "aggregate"):
        return None
    args = instr.args
    inner = args["x"]
    other = "aggregate" if instr.op == "linear" else "linear"
    if inner.op != other or sole_user(inner) != instr or not _is_bare(inner):
        return None
    aggregate, linear = (inner, instr) if other == "aggregate" else (instr, inner)
    parts = aggregate.args
    if parts["reduce"] not in ("sum", "mean") or len(aggregate.shape) != 2:
        return None
    if any(parts[name] is not None for name in ("weight", "row_scale", "self_weight")):
        return None
    weight, added = linear.args["weight"], args["residual"]
    return _Term(
        instr, inner.args["x"], parts["rowptr"], parts["src"], weight, parts["reduce"], added
    )


@dataclass(frozen=True)
class _Own:
    """A linear layer of the nodes' own rows, and what it is added to."""

    x: Instr
    weight: Instr
    bias: Instr | None
    added: Instr | None


def _own_above(instr: Instr) -> _Own | None:
    """`instr` as the layer that the last term is added to, if nothing else reads that term."""
    if instr.op != "linear" or _term(instr) is not None:
        return None
    args = instr.args
    term = _term(args["residual"])
    if term is None or not _is_unfinished(term.instr) or sole_user(term.instr) is None:
        return None
    return _Own(args["x"], args["weight"], args["bias"], None)


def _own_below(added: Instr | None, last: Instr) -> _Own | None:
    """The layer that the first term is added to, if that is one and nothing else reads it."""
    if added is None or added.op != "linear" or sole_user(added) is None or _term(added):
        return None
    args = added.args
    if args["activation"] != "none" or (args["bias"] is not None and last.args["bias"] is not None):
        return None
    return _Own(args["x"], args["weight"], args["bias"], args["residual"])


def _may_precede(before: _Term, last: _Term) -> bool:
    """Whether the sum so far is read by one term alone, is not finished, and is of one kind."""
    alike = before.reduce == last.reduce and sole_user(before.instr) is not None
    return alike and _is_unfinished(before.instr)


def _is_unfinished(instr: Instr) -> bool:
    return instr.args["bias"] is None and instr.args["activation"] == "none"


def _is_bare(instr: Instr) -> bool:
    return _is_unfinished(instr) and instr.args["residual"] is None
