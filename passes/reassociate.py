"""Aggregate where rows are narrow: (A X) W = A (X W).

    h: f32[N, 256] = aten.linear.default(x, w)          x: f32[N, 128]
    y: f32[N, 256] = aggregate(h, rowptr, src, norm)
  becomes
    a: f32[N, 128] = aggregate(x, rowptr, src, norm)
    y: f32[N, 256] = aten.linear.default(a, w)

and the other way round where the linear layer narrows.  Aggregation moves a row an edge, the
linear layer a row a node, so the width of the aggregated rows decides.
"""

from __future__ import annotations

from gnnfx.ir.patterns import is_param, sole_user, used_elsewhere
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.epilogue import ACTIVATION_OPS
from gnnfx.pass_manager import Numerics, Pass, PassContext


class Reassociate(Pass):
    """Swap a linear layer and the aggregate beside it if that narrows the aggregated rows."""

    name = "reassociate"
    needs = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for aggregate in list(rewriter.program.find("aggregate")):
            if aggregate.args["reduce"] not in ("sum", "mean") or len(aggregate.shape) != 2:
                continue
            before, after = aggregate.arg, sole_user(aggregate)
            if _widens(before):
                if (reason := _refusal(before, aggregate)) is not None:
                    ctx.missed(aggregate, reason)
                    continue
                rewriter.replace(aggregate, _linear_last(rewriter, before, aggregate))
                ctx.did(aggregate, f"aggregates {before.arg.shape[-1]} channels, then widens")
            elif after is not None and _narrows(after, aggregate):
                rewriter.replace(after, _linear_first(rewriter, aggregate, after))
                ctx.did(aggregate, f"narrows to {after.shape[-1]} channels, then aggregates")
        return rewriter.finish()


def _is_linear(instr: Instr) -> bool:
    return instr.op == "aten.linear.default" and is_param(instr.args["weight"])


def _widens(linear: Instr) -> bool:
    if not _is_linear(linear):
        return False
    outputs, inputs = linear.args["weight"].shape
    return bool(inputs < outputs)


def _narrows(linear: Instr, aggregate: Instr) -> bool:
    """Whether `linear` reads a bare aggregate and gives fewer channels."""
    args = aggregate.args
    bare = args["bias"] is None and args["residual"] is None and args["activation"] == "none"
    if not bare or not _is_linear(linear) or linear.arg != aggregate:
        return False
    outputs, inputs = linear.args["weight"].shape
    return bool(outputs < inputs)


def _refusal(linear: Instr, aggregate: Instr) -> str | None:
    if linear.args["bias"] is not None:
        return f"{linear} adds a bias to each message, which a sum would count once an edge"
    if aggregate.args["self_weight"] is not None:
        return f"{aggregate} adds its own row to the sum"
    return used_elsewhere(linear, aggregate)


def _linear_last(rewriter: Rewriter, linear: Instr, aggregate: Instr) -> Instr:
    args = {**aggregate.args, "x": linear.arg}
    bias, residual, activation = (args.pop(k) for k in ("bias", "residual", "activation"))
    rows = rewriter.insert(aggregate, "aggregate", **args, like=aggregate)
    biases = [] if bias is None else [bias]
    value = rewriter.insert(
        aggregate, "aten.linear.default", rows, linear.args["weight"], *biases, like=linear
    )
    if residual is not None:
        value = rewriter.insert(aggregate, "aten.add.Tensor", value, residual)
    if activation != "none":
        value = rewriter.insert(aggregate, ACTIVATION_OPS[activation], value)
    return value


def _linear_first(rewriter: Rewriter, aggregate: Instr, linear: Instr) -> Instr:
    args = linear.args
    narrow = rewriter.insert(
        aggregate, "aten.linear.default", aggregate.arg, args["weight"], like=linear
    )
    new = {**aggregate.args, "x": narrow, "bias": args["bias"]}
    return rewriter.insert(linear, "aggregate", **new, like=aggregate)
