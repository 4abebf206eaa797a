"""Multiply nodes with the weight of each type, not each edge with a copy of its type's weight.

    j: f32[E, 1, 8] = aten.unsqueeze.default(gather(x, src), 1)
    w: f32[E, 8, 4] = gather(v, edge_type)                 v: f32[3, 8, 4] = param('weight')
    m: f32[E, 1, 4] = aten.bmm.default(j, w)
    y: f32[E, 4] = aten.squeeze.dim(m, 1)
  becomes
    p: f32[N, 12] = aten.linear.default(x, u)              u: f32[12, 8] = v, type below type
    y: f32[E, 4] = gather(aten.view.default(p, [-1, 4]), 3 * src + edge_type)

as FastRGCNConv and RGATConv have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gnnfx.ir.patterns import RESHAPES, is_feature, is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.row_counts import RowCounts

# A core multiplies and adds about this many floats in the time in which it moves a byte.
_FLOPS_PER_BYTE = 8


@dataclass(frozen=True)
class _Typed:
    """Products x[index] @ weight[types]."""

    x: Instr
    index: Instr
    weight: Instr
    types: Instr


class MultiplyByType(Pass):
    """Replace products with gathered matrices by gathered rows of products with all of them."""

    name = "multiply-by-type"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        counts = RowCounts(program, ctx)
        joined: dict[Instr, Instr] = {}
        for product in rewriter.program.find("aten.bmm.default"):
            if (typed := _typed(product)) is None:
                continue
            rows = counts.of(typed.x) * int(typed.weight.shape[0])
            if rows / _FLOPS_PER_BYTE > 4 * counts.of(product):
                ctx.missed(product, "multiplying nodes with the weight of every type takes longer")
                continue
            if typed.weight not in joined:
                joined[typed.weight] = _joined(rewriter, typed.weight)
            gathered = _gathered(rewriter, product, typed, joined[typed.weight])
            for user in product.users:
                rewriter.replace(user, gathered)
            ctx.did(gathered, f"multiplies nodes with {typed.weight.shape[0]} weights, not edges")
        return rewriter.finish()


def _typed(product: Instr) -> _Typed | None:
    left, right = product.args["self"], product.args["mat2"]
    if left.op not in RESHAPES or left.arg.op != "gather" or (types := _index(right)) is None:
        return None
    rows, weight = left.arg, right.arg
    edges, _, outputs = product.shape
    if not is_param(weight) or len(weight.shape) != 3 or not is_feature(rows.arg):
        return None
    if len(rows.arg.shape) != 2 or left.shape != (rows.shape[0], 1, rows.shape[1]):
        return None
    flat = all(u.op in RESHAPES and u.shape == (edges, outputs) for u in product.users)
    if not flat or product.dtype is not torch.float32:
        return None
    return _Typed(rows.arg, rows.args["index"], weight, types)


def _index(value: Instr) -> Instr | None:
    """The index [E] by which `value` gathers rows, or None."""
    args = value.args
    match value.op:
        case "gather":
            found = args["index"]
        case "aten.index_select.default" if args["dim"] == 0:
            found = args["index"]
        case "aten.index.Tensor" if len(args["indices"]) == 1:
            found = args["indices"][0]
        case _:
            return None
    return found if found.dtype is torch.int64 and len(found.shape) == 1 else None


def _joined(rewriter: Rewriter, weight: Instr) -> Instr:
    """The weights [T, I, O] of all types as one, [T * O, I]."""
    rows = rewriter.program.tensor(weight).transpose(1, 2).flatten(0, 1)
    return rewriter.param(weight, f"{weight.param}.by_type", rows.contiguous())


def _gathered(rewriter: Rewriter, product: Instr, typed: _Typed, weight: Instr) -> Instr:
    def insert(op: str, *args: Any, **kwargs: Any) -> Instr:
        return rewriter.insert(product, op, *args, **kwargs)

    x, (types, _, outputs) = typed.x, typed.weight.shape
    products = insert("aten.linear.default", x, weight)
    # Both parts of the row are gathered, so that an index of no node or type stays an error.
    count = insert("aten.sym_size.int", x, 0)
    nodes = insert("aten.arange.default", count, device=x.fake.device)
    first = insert("gather", insert("aten.mul.Tensor", nodes, types), typed.index)
    numbers = insert("aten.arange.default", types, device=x.fake.device)
    row = insert("aten.add.Tensor", first, insert("gather", numbers, typed.types))
    return insert("gather", insert("aten.view.default", products, [-1, outputs]), row)
