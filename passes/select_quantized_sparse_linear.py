"""Round and multiply what an input holds where it is mostly zeros, as bags of words are.

  q: i8[N, 1433] = quantize(x, s, z)
  y: f32[N, 16] = quantized_linear(q, s, z, codes, t, 1433, b)    x: 2 % of the example is not zero
becomes
  y: f32[N, 16] = quantized_sparse_linear(x, s, z, codes', t, b)    codes' = transposed codes

The sums are the same integers, so the result is the same to the last bit.
"""

from __future__ import annotations

from gnnfx.ir.patterns import is_param
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
        for quantize in rewriter.program.find("quantize"):
            x, layers = quantize.arg, quantize.users
            density = ctx.densities.get(x.name, 1.0)
            if x.op != "input" or quantize.args["row_scale"] is not None:
                continue
            # Where something else reads the codes, they are made of the whole input in any case.
            if all(_fits(layer, density) for layer in layers) and all(map(ctx.allows, layers)):
                for layer in layers:
                    rewriter.replace(layer, _sparse(rewriter, layer, x))
                    ctx.did(layer, f"reads only the {density:.1%} of its input that is not zero")
        return rewriter.finish()


def _fits(layer: Instr, density: float) -> bool:
    if layer.op != "quantized_linear":
        return False
    args = layer.args
    plain = all(args[name] is None for name in _FINISHED_LATER) and args["activation"] == "none"
    if not plain or not is_param(args["weight"]):
        return False
    return saves_time(int(args["weight"].shape[0]), args["channels"], density)


def _sparse(rewriter: Rewriter, linear: Instr, x: Instr) -> Instr:
    args = linear.args
    weight = args["weight"]
    codes = unpack(rewriter.program.tensor(weight), args["channels"], args["weight_bits"])
    transposed = rewriter.param(linear, f"{weight.param}.transposed", codes.t().contiguous())
    operands = args["scale"], args["zero_point"], transposed, args["weight_scale"], args["bias"]
    return rewriter.insert(linear, "quantized_sparse_linear", x, *operands, args["bits"])
