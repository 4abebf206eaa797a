"""Read in-degrees off the row pointers of the sorted edges, rather than count edges again.

    d: f32[N] = scatter(ones, dst, n, 'sum')          # one per edge
    c: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  becomes
    c: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
    d: f32[N] = difference of neighbours in rowptr

which reads a number a node in place of two an edge.
"""

from __future__ import annotations

import torch

from gnnfx.ir.patterns import constant_value
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class LowerDegrees(Pass):
    """Replace sums of ones over edges that are sorted anyway."""

    name = "lower-degrees"
    needs = frozenset({"csr"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for scatter in rewriter.program.find("scatter"):
            if not _counts(scatter):
                continue
            index, rows = scatter.args["index"], scatter.args["num_rows"]
            for compress in rewriter.program.find("compress"):
                if compress.args["dst"] == index and compress.args["num_dst"] == rows:
                    _read_rowptr(rewriter, scatter, _above(rewriter, scatter, compress))
                    break
        return rewriter.finish()


def _counts(scatter: Instr) -> bool:
    ones = constant_value(scatter.arg) == 1.0 and len(scatter.shape) == 1
    return ones and scatter.dtype is torch.float32 and scatter.args["reduce"] == "sum"


def _above(rewriter: Rewriter, scatter: Instr, compress: Instr) -> Instr:
    """`compress` where both it and its results come before `scatter`, if they do not already."""
    order = {instr: at for at, instr in enumerate(rewriter.program.instrs)}
    if order[compress] < order[scatter]:
        return compress
    last = max(order[i] for i in (*compress.inputs, *scatter.inputs))
    place = next(i for i, at in order.items() if at > last)
    moved = rewriter.insert(place, "compress", *compress.positional, like=compress)
    for user in compress.users:
        item = rewriter.insert(place, "getitem", moved, user.positional[1], like=user)
        rewriter.replace(user, item)
    return moved


def _read_rowptr(rewriter: Rewriter, scatter: Instr, compress: Instr) -> None:
    def insert(op: str, *args: object, **kwargs: object) -> Instr:
        return rewriter.insert(place, op, *args, like=scatter, **kwargs)

    place = scatter
    ends = insert("getitem", compress, 0)
    counts = insert("aten.diff.default", ends)
    rewriter.replace(scatter, insert("aten._to_copy.default", counts, dtype=torch.float32))
