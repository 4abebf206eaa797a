"""Multiply by the non-zeros of a weight alone, where so few are left that this is faster.

  y: f32[N, 256] = aten.linear.default(x, w, b)       w: f32[256, 256], 5 % of it not zero
becomes
  y: f32[N, 256] = csr_linear(x, w.rowptr, w.columns, w.values, b)
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.csr_linear import compressed_rows
from gnnfx.pass_manager import Numerics, Pass, PassContext

# Measured on a CPU (benchmarks/README.md), in multiply-adds of a dense product: what one weight
# costs a row of x, and what it costs to transpose one channel of it there and back.
_WEIGHT, _CHANNEL = 2, 64
_LEAST_ZEROS = 0.5


class SelectCsrLinear(Pass):
    """Use compressed sparse rows where they win; dense products of sparse weights are named."""

    name = "select-csr-linear"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for linear in rewriter.program.find("aten.linear.default"):
            if not _fits(linear):
                continue
            weight = rewriter.program.tensor(linear.args["weight"])
            nonzero = int(weight.count_nonzero())
            if nonzero > (1 - _LEAST_ZEROS) * weight.numel():
                continue
            share = f"{nonzero / weight.numel():.1%} of its weights that are not zero"
            if weight.device.type == "cpu" and _is_faster(weight, nonzero):
                if not ctx.allows(linear):
                    continue
                rewriter.replace(linear, _sparse(rewriter, linear, weight))
                ctx.did(linear, f"runs sparse, on the {share}")
            else:
                ctx.missed(linear, f"runs dense, which is faster here than on the {share}")
        return rewriter.finish()


def _fits(linear: Instr) -> bool:
    matrix = len(linear.shape) == 2 and linear.dtype is torch.float32
    return matrix and is_param(linear.args["weight"])


def _is_faster(weight: Tensor, nonzero: int) -> bool:
    return _WEIGHT * nonzero + _CHANNEL * sum(weight.shape) <= weight.numel()


def _sparse(rewriter: Rewriter, linear: Instr, weight: Tensor) -> Instr:
    name = linear.args["weight"].param
    parts = zip(("rowptr", "columns", "values"), compressed_rows(weight), strict=True)
    params = [rewriter.param(linear, f"{name}.{part}", tensor) for part, tensor in parts]
    biases = [] if linear.args["bias"] is None else [linear.args["bias"]]
    return rewriter.insert(linear, "csr_linear", linear.arg, *params, *biases)
