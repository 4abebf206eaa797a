"""Reduce the messages of a node in one sweep, and only what differs between its messages.

    i: f32[E, 8] = gather(p, dst)
    j: f32[E, 8] = gather(q, src)
    m: f32[E, 8] = aten.add.Tensor(i, j)
    a: f32[N, 8] = scatter(m, dst, n, 'mean')
    b: f32[N, 8] = scatter(m, dst, n, 'max')
    c: f32[N, 16] = aten.cat.default([a, b], -1)
  becomes
    c: f32[N, 16] = aggregate_many(q, rowptr, src_by_dst, 'mean,max', p)

and likewise features of edges that are added to messages, the mean of squares minus the square of
the mean, and PyG's standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gnnfx.ir.patterns import is_feature
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.aggregate_many import LEAST_STD, LEAST_VARIANCE
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.fuse_messages import EdgeSum, edge_features, sum_of, terms_of

_REDUCES = ("sum", "mean", "min", "max")


@dataclass(frozen=True)
class Messages:
    """x[src] (+ x_dst[dst]) (+ edge); src None for messages that are rows of x themselves."""

    x: Instr
    src: Instr | None = None
    x_dst: Instr | None = None
    edge: Instr | None = None


@dataclass
class _Group:
    """Reductions of the messages of `scatter`, the first of them in the program, by name."""

    scatter: Instr
    values: dict[str, Instr] = field(default_factory=dict)


class FuseReductions(Pass):
    """Replace scatters of the same messages, or of a sum with a destination's row, by one op."""

    name = "fuse-reductions"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        groups: dict[tuple[Any, ...], _Group] = {}
        for name, value, scatter in _reductions(rewriter.program):
            messages, dst, num_rows, _ = scatter.args.values()
            group = groups.setdefault((messages, dst, num_rows), _Group(scatter))
            group.values.setdefault(name, value)
        for group in groups.values():
            edge_rows, dst, *_ = group.scatter.args.values()
            messages = messages_of(edge_rows, dst)
            alone = len(group.values) == 1
            if alone and (messages.x_dst is None or messages.edge is not None):
                continue
            _replace(rewriter, messages, group)
            ctx.did(group.scatter, f"one sweep over the edges for {', '.join(group.values)}")
        return rewriter.finish()


def _reductions(program: Program) -> Iterator[tuple[str, Instr, Instr]]:
    """(reduction, its result, the scatter of its messages), variances for the means in them."""
    scatters = [s for s in program.find("scatter") if _fits(s)]
    variances = {s: var for s in scatters if (var := _variance(s)) is not None}
    of_squares = {var.args["self"] for var in variances.values()}
    for scatter in scatters:
        if scatter in of_squares:
            continue
        yield scatter.args["reduce"], scatter, scatter
        if (var := variances.get(scatter)) is not None:
            std = _deviation(var)
            yield ("var", var, scatter) if std is None else ("std", std, scatter)


def _fits(scatter: Instr) -> bool:
    matrix = len(scatter.shape) == 2 and scatter.dtype is torch.float32
    return matrix and is_feature(scatter) and scatter.args["reduce"] in _REDUCES


def messages_of(edge_rows: Instr, dst: Instr) -> Messages:
    """What the messages `edge_rows` [E, C] to `dst` are made of."""
    if edge_rows.op == "gather" and edge_rows.args["index"] != dst:
        return Messages(edge_rows.arg, edge_rows.args["index"])
    if edge_rows.op == "aten.add.Tensor" and edge_rows.args["alpha"] == 1:
        parts = [edge_rows.args["self"], edge_rows.args["other"]]
        if all(isinstance(part, Instr) for part in parts):
            found = sum_of([term for part in parts for term in terms_of(part)], dst)
            if isinstance(found, EdgeSum) and found.x.shape[1] == edge_rows.shape[1]:
                return Messages(found.x, found.src, found.x_dst, found.edge)
    return Messages(edge_rows)


def _variance(mean: Instr) -> Instr | None:
    """scatter(m * m, mean) - mean * mean where `mean` is scatter(m, mean), or None."""
    if mean.args["reduce"] != "mean":
        return None
    for square in mean.users:
        if not _is_square(square, mean):
            continue
        for var in square.users:
            if var.op != "aten.sub.Tensor" or var.args["alpha"] != 1 or square != var.args["other"]:
                continue
            of = var.args["self"]
            if of.op != "scatter" or not _is_square(of.arg, mean.arg):
                continue
            if all(of.args[k] == mean.args[k] for k in ("index", "num_rows", "reduce")):
                return var
    return None


def _is_square(value: Instr, root: Instr) -> bool:
    product = value.op == "aten.mul.Tensor"
    return product and value.args["self"] == root and value.args["other"] == root


def _deviation(var: Instr) -> Instr | None:
    """masked_fill(sqrt(clamp(var)), what is at most the least deviation, 0), or None."""
    chain, value = ("aten.clamp.default", "aten.sqrt.default"), var
    for op in chain:
        if len(value.users) != 1 or value.users[0].op != op:
            return None
        value = value.users[0]
    clamp = value.arg.args
    if clamp["min"] != LEAST_VARIANCE or clamp["max"] is not None:
        return None
    for fill in value.users:
        if fill.op != "aten.masked_fill.Scalar" or fill.arg != value or fill.args["value"] != 0:
            continue
        mask = fill.args["mask"]
        if mask.op == "aten.le.Scalar" and mask.arg == value and mask.args["other"] == LEAST_STD:
            return fill
    return None


def _replace(rewriter: Rewriter, messages: Messages, group: _Group) -> None:
    """One op for all values of a group, in the order in which they are joined, if they are."""

    def insert(op: str, *args: Any) -> Instr:
        return rewriter.insert(group.scatter, op, *args)

    names = {value: name for name, value in group.values.items()}
    joined = _joined(list(names))
    order = list(names) if joined is None else joined.arg
    _, dst, num_rows, _ = group.scatter.args.values()
    csr = insert("compress", messages.src or dst, dst, num_rows)
    rowptr, src = insert("getitem", csr, 0), insert("getitem", csr, 1 if messages.src else 2)
    reduces = ",".join(names[value] for value in order)
    args = [messages.x, rowptr, src, reduces, messages.x_dst]
    if messages.edge is not None:
        args += [insert("getitem", csr, 2), *edge_features(messages.edge)]
    many = insert("aggregate_many", *args)
    if joined is not None:
        rewriter.replace(joined, many)
    if len(order) == 1:
        rewriter.replace(order[0], many)
        return
    width = order[0].shape[1]
    for number, value in enumerate(order):
        # A copy, since kernels take rows that lie one after the other.
        part = insert("aten.slice.Tensor", many, 1, number * width, (number + 1) * width)
        rewriter.replace(value, insert("aten.clone.default", part))


def _joined(values: list[Instr]) -> Instr | None:
    """The concatenation of all of `values` and nothing else, or None."""
    for user in values[0].users:
        if user.op != "aten.cat.default" or user.args["dim"] not in (-1, 1):
            continue
        if len(user.arg) == len(values) and set(user.arg) == set(values):
            return user
    return None
