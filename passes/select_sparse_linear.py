"""Multiply inputs that are mostly zeros, such as bags of words, by their non-zeros alone.

  y: f32[N, 16] = aten.linear.default(x, w, b)        x: 2 % of the example is not zero
becomes
  y: f32[N, 16] = sparse_linear(x, w', b)             w' = transposed w
"""

from __future__ import annotations

from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.policy import Policy

# A value that is picked out takes as long as multiply-adds for 600 outputs of a dense product.
_MOST_NONZERO, _OUTPUTS_A_VALUE = 0.08, 600
_LEAST_INPUTS = 128


class SelectSparseLinear(Pass):
    """Use the sparse product where the example's input is sparse; it falls back by itself."""

    name = "select-sparse-linear"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for linear in rewriter.program.find("aten.linear.default"):
            density = ctx.densities.get(linear.arg.name, 1.0)
            sparse = linear.arg.op == "input" and _fits(linear, density)
            sparse = sparse and not _runs_on_codes(linear, ctx.policy)
            if sparse and ctx.allows(linear):
                rewriter.replace(linear, _sparse(rewriter, linear))
                ctx.did(linear, f"reads only the {density:.1%} of its input that is not zero")
        return rewriter.finish()


def _fits(linear: Instr, density: float) -> bool:
    weight = linear.args["weight"]
    if not is_param(weight) or len(linear.shape) != 2:
        return False
    outputs, inputs = map(int, weight.shape)
    return saves_time(outputs, inputs, density)


def _runs_on_codes(linear: Instr, policy: Policy) -> bool:
    """Whether the policy wants integers in this layer even where floats are as fast."""
    everywhere = policy.quantize is not None and policy.quantize.layers == "all"
    return everywhere and policy.skipped_by(linear.module) is None


def saves_time(outputs: int, inputs: int, density: float) -> bool:
    """Whether picking out values is faster than the dense product of a linear layer."""
    return inputs >= _LEAST_INPUTS and density <= min(_MOST_NONZERO, outputs / _OUTPUTS_A_VALUE)


def _sparse(rewriter: Rewriter, linear: Instr) -> Instr:
    weight = linear.args["weight"]
    tensor = rewriter.program.tensor(weight).t().contiguous()
    transposed = rewriter.param(linear, f"{weight.param}.transposed", tensor)
    biases = [] if linear.args["bias"] is None else [linear.args["bias"]]
    return rewriter.insert(linear, "sparse_linear", linear.arg, transposed, *biases)
