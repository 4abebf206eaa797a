"""Let a linear layer round the values that it alone reads.

    q: i8[N, 8] = quantize(x, s, z)
    y: f32[N, 4] = quantized_linear(q, s, z, w, t, 8)
  becomes
    y: f32[N, 4] = quantized_linear(x, s, z, w, t, 8)

so that no codes are written to memory for the layer to read.
"""

from __future__ import annotations

from gnnfx.ir.patterns import sole_user
from gnnfx.ir.program import Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class FuseQuantize(Pass):
    """Move a quantizer into the linear layer behind it."""

    name = "fuse-quantize"
    needs = frozenset({"integer"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for quantize in rewriter.program.find("quantize"):
            layer = sole_user(quantize)
            scaled = quantize.args["row_scale"] is not None
            if layer is None or layer.op != "quantized_linear" or scaled:
                continue
            args = {**layer.args, "x": quantize.arg}
            fused = rewriter.insert(layer, layer.op, **args, like=layer)
            rewriter.replace(layer, fused)
        return rewriter.finish()
