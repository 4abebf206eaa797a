"""Make messages where they are reduced: act(x[src] + p[dst] + features of the edge).

    j: f32[E, 8] = gather(x, src)
    c: f32[E, 8] = aten.linear.default(e, w)              e: f32[E, 3]
    m: f32[E, 8] = aten.relu.default(aten.add.Tensor(j, c))
    y: f32[N, 8] = scatter(m, dst, n, 'sum')
  becomes
    y: f32[N, 8] = aggregate_messages(x, rowptr, src_by_dst, perm, None, e, w, None, 'relu', ...)

so that no message is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from gnnfx.ir.patterns import is_feature, is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

REDUCES = ("sum", "mean", "min", "max")
_ACTIVATIONS = {
    "aten.relu.default": "relu",
    "aten.leaky_relu.default": "leaky_relu",
    "aten.silu.default": "silu",
    "aten.sigmoid.default": "sigmoid",
}


@dataclass(frozen=True)
class EdgeSum:
    """Messages act(x[src] (+ x_dst[dst]) (+ edge)) + offset."""

    x: Instr
    src: Instr
    x_dst: Instr | None
    edge: Instr | None
    activation: str
    slope: float
    offset: float


class FuseMessages(Pass):
    """Replace scatters of sums of gathered rows and edge features by `aggregate_messages`."""

    name = "fuse-messages"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for scatter in rewriter.program.find("scatter"):
            messages, dst, _, reduce = scatter.args.values()
            if reduce not in REDUCES or not _fits(messages) or sole_user(messages) is None:
                continue
            match edge_sum(messages, dst):
                case str(reason):
                    ctx.missed(scatter, reason)
                case EdgeSum() as found if _is_made(found):
                    rewriter.replace(scatter, insert_messages(rewriter, scatter, found, reduce))
                    ctx.did(scatter, "makes its messages while it reduces them")
        return rewriter.finish()


def _is_made(found: EdgeSum) -> bool:
    """Whether messages are more than rows of sources and destinations."""
    return found.edge is not None or found.activation != "none" or found.offset != 0


def _fits(messages: Instr) -> bool:
    return len(messages.shape) == 2 and messages.dtype is torch.float32 and is_feature(messages)


def edge_sum(messages: Instr, dst: Instr) -> EdgeSum | str | None:
    """The sum that `messages` [E, C] to `dst` are, why they cannot be fused, or None for others."""
    total, slope, offset = messages, 0.0, 0.0
    if total.op == "aten.add.Tensor" and isinstance(total.args["other"], int | float):
        total, offset = total.arg, float(total.args["other"]) * total.args["alpha"]
    activation = _ACTIVATIONS.get(total.op, "none")
    if activation != "none":
        slope = total.args.get("negative_slope", 0.0)
        total = total.arg
    found = sum_of(terms_of(total), dst)
    if not isinstance(found, EdgeSum) or found.x.shape[1] != messages.shape[1]:
        return found if isinstance(found, str) else None
    return replace(found, activation=activation, slope=slope, offset=offset)


def sum_of(terms: list[Instr], dst: Instr) -> EdgeSum | str | None:
    """What the sum of `terms` [E, C] is made of, with no activation, or as `edge_sum`."""
    x = src = x_dst = edge = None
    for term in terms:
        if term.shape != terms[0].shape:
            return None
        if term.op == "gather" and term.args["index"] == dst and x_dst is None:
            x_dst = term.arg
        elif term.op == "gather" and x is None:
            x, src = term.arg, term.args["index"]
        elif edge is None:
            edge = term
        else:
            return "its messages are sums of more than a source, a destination and an edge"
    if x is None or src is None or not is_feature(x):
        return None
    return EdgeSum(x, src, x_dst, edge, "none", 0.0, 0.0)


def terms_of(value: Instr) -> list[Instr]:
    """The summands of nested additions that nothing else reads."""
    if value.op == "aten.add.Tensor" and value.args["alpha"] == 1 and len(value.users) == 1:
        left, right = value.args["self"], value.args["other"]
        if isinstance(left, Instr) and isinstance(right, Instr):
            return [*terms_of(left), *terms_of(right)]
    return [value]


def insert_messages(
    rewriter: Rewriter, scatter: Instr, found: EdgeSum, reduce: str, temperature: Any = None
) -> Instr:
    """`aggregate_messages` in the place of a scatter, with the CSR that it reads."""
    _, dst, num_rows, _ = scatter.args.values()

    def insert(op: str, *args: Any) -> Instr:
        return rewriter.insert(scatter, op, *args)

    csr = insert("compress", found.src, dst, num_rows)
    parts = (insert("getitem", csr, i) for i in range(3))
    args = [*edge_features(found.edge), found.activation, found.slope, reduce]
    if found.offset or temperature is not None:
        args += [found.offset, temperature]
    return insert("aggregate_messages", found.x, *parts, found.x_dst, *args)


def edge_features(edge: Instr | None) -> tuple[Any, Any, Any]:
    """(features, weight, bias) that make `edge` [E, C], which is narrower before its layer."""
    if edge is None or edge.op != "aten.linear.default" or len(edge.users) > 1:
        return edge, None, None
    weight = edge.args["weight"]
    if not is_param(weight) or weight.shape[1] > weight.shape[0] or len(edge.arg.shape) != 2:
        return edge, None, None
    return edge.arg, weight, edge.args["bias"]
