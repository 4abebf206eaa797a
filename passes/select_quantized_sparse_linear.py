"""Round and multiply what an input holds where it is mostly zeros, as bags of words are.

  q: i8[N, 1433] = quantize(x, s, z)
  y: f32[N, 16] = quantized_linear(q, s, z, codes, t, 1433, b)    x: 2 % of the example is not zero
becomes
  y: f32[N, 16] = quantized_sparse_linear(x, s, z, codes', t, b)    codes' = transposed codes

The sums are the same integers, so the result is the same to the last bit.
"""

from __future__ import annotations

from gnnfx.ir.patterns import is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.quantize import unpack
from gnnfx.pass_manager import Pass, PassContext
from gnnfx.passes.select_sparse_linear import saves_time

_FINISHED_LATER = ("residual", "out_scale", "row_scale")


class SelectQuantizedSparseLinear(Pass):
    """Use the sparse integer product where the example's input is sparse; it falls back itself."""

    name = "select-quantized-sparse-linear"
    needs = frozenset({"integer"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for linear in rewriter.program.find("quantized_linear"):
            quantize = linear.arg
            x = quantize.arg if quantize.op == "quantize" else None
            if x is None or x.op != "input" or not _fits(linear, quantize):
                continue
            density = ctx.densities.get(x.name, 1.0)
            outputs, inputs = int(linear.args["weight"].shape[0]), linear.args["channels"]
            if saves_time(outputs, inputs, density) and ctx.allows(linear):
                rewriter.replace(linear, _sparse(rewriter, linear, x))
                ctx.did(linear, f"reads only the {density:.1%} of its input that is not zero")
        return rewriter.finish()


def _fits(linear: Instr, quantize: Instr) -> bool:
    args = linear.args
    plain = all(args[name] is None for name in _FINISHED_LATER) and args["activation"] == "none"
    alone = sole_user(quantize) is not None and quantize.args["row_scale"] is None
    return plain and alone and is_param(args["weight"])


def _sparse(rewriter: Rewriter, linear: Instr, x: Instr) -> Instr:
    args = linear.args
    weight = args["weight"]
    codes = unpack(rewriter.program.tensor(weight), args["channels"], args["weight_bits"])
    transposed = rewriter.param(linear, f"{weight.param}.transposed", codes.t().contiguous())
    operands = args["scale"], args["zero_point"], transposed, args["weight_scale"], args["bias"]
    return rewriter.insert(linear, "quantized_sparse_linear", x, *operands, args["bits"])
