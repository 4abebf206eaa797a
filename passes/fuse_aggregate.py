"""Lower scatters to aggregates over CSR, so that the [E, C] messages are never stored.

    m: f32[E, 8] = gather(x, src)
    s: f32[E, 8] = aten.mul.Tensor(m, w)
    y: f32[N, 8] = scatter(s, dst, n, 'sum')
  becomes
    c: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
    y: f32[N, 8] = aggregate(x, rowptr, src_by_dst, w_by_dst)

Edge values are put in the order of their destinations where they are made: structure once per
graph, gathers by reading through the sorted index, and only what is left by a permutation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gnnfx.ir.patterns import is_feature, row_vector
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

_REDUCES = ("sum", "mean", "max", "min")


class FuseAggregate(Pass):
    """Replace gather-scale-scatter by one `aggregate`."""

    name = "fuse-aggregate"
    needs = frozenset({"raised"})
    gives = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for scatter in rewriter.program.find("scatter"):
            if not is_feature(scatter):
                continue
            if (reason := _refusal(scatter)) is not None:
                ctx.missed(scatter, reason)
                continue
            if not ctx.allows(scatter):
                continue
            rewriter.replace(scatter, _aggregate(rewriter, scatter))
        return rewriter.finish()


def _refusal(scatter: Instr) -> str | None:
    if (reduce := scatter.args["reduce"]) not in _REDUCES:
        return f"reduce={reduce}: only {', '.join(_REDUCES)} run over CSR"
    if scatter.dtype is not torch.float32:
        return f"messages are {scatter.dtype}, not float32"
    if len(scatter.shape) not in (2, 3):
        return f"messages have {len(scatter.shape)} dimensions, not [E, C] or [E, H, C]"
    return None


def _aggregate(rewriter: Rewriter, scatter: Instr) -> Instr:
    messages, dst, rows, reduce = scatter.args.values()
    x, src, weight = _message(messages)
    order = _Order(rewriter, scatter, src or dst, dst, rows)
    if x is None:
        return order.insert("aggregate", messages, order.rowptr, order.perm, None, reduce)
    if weight is not None and len(weight.shape) == len(messages.shape):
        weight = order.insert("aten.view.default", weight, [-1])
    by_dst = None if weight is None else order.sort(weight)
    return order.insert("aggregate", x, order.rowptr, order.src, by_dst, reduce)


def _message(messages: Instr) -> tuple[Instr | None, Instr | None, Instr | None]:
    """(x, src, weight) of messages x[src] or weight * x[src]; (None, None, None) for others."""
    if messages.op == "gather":
        return messages.arg, messages.args["index"], None
    if messages.op == "aten.mul.Tensor":
        left, right = messages.args["self"], messages.args["other"]
        for features, scale in ((left, right), (right, left)):
            weight = _edge_weight(scale, messages)
            if not isinstance(features, Instr) or features.op != "gather" or weight is None:
                continue
            if features.shape == messages.shape:
                return features.arg, features.args["index"], weight
    return None, None, None


def _edge_weight(scale: Any, messages: Instr) -> Instr | None:
    """The weight [E], [E, H] or column [E, 1] that is the same for channels of `messages`."""
    if not isinstance(scale, Instr):
        return None
    if (vector := row_vector(scale)) is not None:
        return vector if vector.shape == messages.shape[:1] else None
    if len(messages.shape) == 2 and scale.shape == (messages.shape[0], 1):
        return scale
    per_head = len(messages.shape) == 3 and scale.shape == (*messages.shape[:2], 1)
    if per_head and scale.op in ("aten.unsqueeze.default", "aten.view.default"):
        return scale.arg if scale.arg.shape == messages.shape[:2] else None
    return None


@dataclass
class _Order:
    """The edges of one scatter in the order of their destinations."""

    rewriter: Rewriter
    scatter: Instr
    src_index: Instr
    dst: Instr
    rows: Any
    sorted_values: dict[Instr, Instr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        csr = self.insert("compress", self.src_index, self.dst, self.rows)
        self.rowptr, self.src, self.perm = (self.insert("getitem", csr, i) for i in range(3))
        self.sorted_values[self.src_index] = self.src

    def insert(self, op: str, *args: Any, **kwargs: Any) -> Instr:
        return self.rewriter.insert(self.scatter, op, *args, like=self.scatter, **kwargs)

    def sort(self, value: Instr) -> Instr:
        """`value` [E, ...] with its rows in the order of destinations."""
        if value not in self.sorted_values:
            self.sorted_values[value] = self._sort(value)
        return self.sorted_values[value]

    def _sort(self, value: Instr) -> Instr:
        if value.op == "gather":
            return self.insert("gather", value.arg, self.sort(value.args["index"]))
        if value.op == "edge_softmax" and value.args["index"] == self.dst:
            return self.insert("segment_softmax", self.sort(value.arg), self.rowptr)
        if _rowwise(value):
            args = [
                self.sort(a) if isinstance(a, Instr) and a.shape[:1] == value.shape[:1] else a
                for a in value.positional
            ]
            return self.insert(value.op, *args, **value.keywords)
        return self.insert("gather", value, self.perm)


_POINTWISE = {
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.mul.Tensor",
    "aten.div.Tensor",
    "aten.leaky_relu.default",
    "aten.relu.default",
    "aten.tanh.default",
    "aten.sigmoid.default",
    "aten.exp.default",
    "aten.abs.default",
    "dropout",
}


def _rowwise(value: Instr) -> bool:
    """Whether each row of the result depends on the same row of the operands alone."""
    if value.op in _POINTWISE:
        operands = [a for a in value.args.values() if isinstance(a, Instr)]
        same_rank = all(
            len(a.shape) == len(value.shape) or a.shape[:1] != value.shape[:1] for a in operands
        )
        return same_rank and any(a.shape[:1] == value.shape[:1] for a in operands)
    if value.op == "aten.sum.dim_IntList":
        dims = value.args["dim"]
        return all(d % len(value.arg.shape) != 0 for d in dims)
    return False
