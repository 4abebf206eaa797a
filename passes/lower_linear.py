"""Lower float linear layers with what follows them to one op.

  h: f32[N, 8] = aten.linear.default(x, w, b)
  y: f32[N, 8] = aten.relu.default(h)
becomes
  y: f32[N, 8] = linear(x, w, b, None, 'relu')
"""

from __future__ import annotations

import torch

from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext


class LowerLinear(Pass):
    """Replace ATen's linear layers on feature matrices; fuse-epilogue does the rest."""

    name = "lower-linear"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for linear in rewriter.program.find("aten.linear.default"):
            if _fits(linear):
                args = (linear.arg, linear.args["weight"], linear.args["bias"])
                rewriter.replace(linear, rewriter.insert(linear, "linear", *args))
        return rewriter.finish()


def _fits(linear: Instr) -> bool:
    matrix = len(linear.shape) == 2 and linear.dtype is torch.float32
    return matrix and is_param(linear.args["weight"])
