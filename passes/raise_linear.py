"""Spell products with a weight as linear layers, which the passes behind fuse and quantize.

    y: f32[N, 4] = aten.matmul.default(x, w)          w: f32[8, 4] = param('w')
  becomes
    y: f32[N, 4] = aten.linear.default(x, t)          t: f32[4, 8] = param('w.transposed')

and likewise for mm, and for addmm with a bias.
"""

from __future__ import annotations

import torch

from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

_OPERANDS = {
    "aten.matmul.default": ("self", "other"),
    "aten.mm.default": ("self", "mat2"),
    "aten.addmm.default": ("mat1", "mat2"),
}


class RaiseLinear(Pass):
    """Transpose weights once, at compile time."""

    name = "raise-linear"
    needs = frozenset({"canonical"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        transposed: dict[str, Instr] = {}
        for product in rewriter.program.find(*_OPERANDS):
            if not _fits(product):
                continue
            x, weight = (product.args[k] for k in _OPERANDS[product.op])
            if weight.param not in transposed:
                tensor = rewriter.program.tensor(weight).t().contiguous()
                name = f"{weight.param}.transposed"
                transposed[weight.param] = rewriter.param(product, name, tensor)
            bias = [product.args["self"]] if product.op == "aten.addmm.default" else []
            args = (x, transposed[weight.param], *bias)
            rewriter.replace(product, rewriter.insert(product, "aten.linear.default", *args))
        return rewriter.finish()


def _fits(product: Instr) -> bool:
    """Whether this is a feature matrix times a weight [K, O], plus a bias [O] for addmm."""
    x, weight = (product.args[k] for k in _OPERANDS[product.op])
    if not is_param(weight) or is_param(x) or len(weight.shape) != 2 or len(x.shape) != 2:
        return False
    if product.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return False
    if product.op != "aten.addmm.default":
        return True
    bias = product.args["self"]
    plain = product.args["beta"] == 1 and product.args["alpha"] == 1
    return plain and is_param(bias) and bias.shape == (weight.shape[1],)
