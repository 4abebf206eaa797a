"""Multiply and add in one op, which reads and writes what is left of a norm once.

  t: f32[N, 8] = aten.mul.Tensor(x, s)
  y: f32[N, 8] = aten.add.Tensor(t, c)
becomes
  y: f32[N, 8] = aten.addcmul.default(c, x, s)
"""

from __future__ import annotations

from gnnfx.ir.patterns import is_feature, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext


class FuseMultiplyAdd(Pass):
    """Replace products that are added to something, and read nowhere else."""

    name = "fuse-multiply-add"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for add in rewriter.program.find("aten.add.Tensor"):
            if not is_feature(add) or add.args["alpha"] != 1:
                continue
            left, right = add.args["self"], add.args["other"]
            for product, term in ((left, right), (right, left)):
                if _is_product(product, add) and _fits(term, add):
                    factors = product.args["self"], product.args["other"]
                    fused = rewriter.insert(add, "aten.addcmul.default", term, *factors)
                    rewriter.replace(add, fused)
                    break
        return rewriter.finish()


def _is_product(value: Instr, add: Instr) -> bool:
    """Whether `value` is a product of two tensors, as large as the sum, for `add` alone."""
    if not isinstance(value, Instr) or value.op != "aten.mul.Tensor" or value.shape != add.shape:
        return False
    factors = value.args["self"], value.args["other"]
    return sole_user(value) == add and all(_fits(factor, add) for factor in factors)


def _fits(value: Instr, add: Instr) -> bool:
    """Whether `value` is a tensor of the sum's type, which may be repeated along its axes."""
    return isinstance(value, Instr) and value.dtype == add.dtype
