"""Remove message-passing layers whose weights are all zero, where something leads around them.

    y: f32[N, 8] = aten.linear.default(h, w, b)           # w and b are zero
    z: f32[N, 8] = aten.add.Tensor(x, y)
    r: f32[N, 8] = aten.relu.default(z)
  becomes
    r: f32[N, 8] = aten.relu.default(x)

and all that only served y is gone.
"""

from __future__ import annotations

from gnnfx.ir.program import Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.pruning.layers import find_layers, passes_messages


class PruneLayers(Pass):
    """Let what leads around a layer stand for a sum that the layer adds nothing to."""

    name = "prune-layers"
    needs = frozenset({"canonical", "raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for layer in find_layers(rewriter.program):
            weights = [program.tensors[name] for name in layer.tensors]
            if layer.removable and not any(weight.any() for weight in weights):
                ctx.did(next(filter(passes_messages, layer.alone)), "layer removed")
                # What is left may itself have been replaced by now.
                rewriter.replace(layer.total, layer.total.args[layer.rest])
        return rewriter.finish()
