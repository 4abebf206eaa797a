"""Multiply the weights of two linear layers without anything between them.

    h: f32[E, 16] = aten.linear.default(x, w, b)           x: f32[E, 3]
    y: f32[E, 8] = aten.linear.default(h, v, c)
  becomes
    y: f32[E, 8] = aten.linear.default(x, vw, d)           d = v b + c

where that takes fewer multiplications, as where features of edges pass an encoder first.
"""

from __future__ import annotations

from gnnfx.ir.patterns import has_params, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext


class MergeLinear(Pass):
    """Replace a layer on the result of another by one on that layer's input."""

    name = "merge-linear"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for layer in rewriter.program.find("aten.linear.default"):
            if not _follows(layer):
                continue
            if ctx.policy.patterns_of(layer.module) != ctx.policy.patterns_of(layer.arg.module):
                ctx.missed(layer, f"the policy tells {layer.arg.module} from it, its input")
                continue
            rewriter.replace(layer, _merged(rewriter, layer))
            ctx.did(layer, f"is one layer with {layer.arg.module}, its input")
        return rewriter.finish()


def _follows(layer: Instr) -> bool:
    """Whether a layer reads another one, and multiplies no more on that one's input."""
    first = layer.arg
    if first.op != "aten.linear.default" or not has_params(layer) or not has_params(first):
        return False
    (width, inputs), outputs = first.args["weight"].shape, layer.args["weight"].shape[0]
    saved = inputs * width if sole_user(first) == layer else 0
    return bool(inputs * outputs <= saved + width * outputs)


def _merged(rewriter: Rewriter, layer: Instr) -> Instr:
    first, tensor = layer.arg, rewriter.program.tensor
    weight, name = tensor(layer.args["weight"]).double(), layer.args["weight"].param
    product = (weight @ tensor(first.args["weight"]).double()).float()
    args = [first.arg, rewriter.param(layer, f"{name}.merged", product)]
    if first.args["bias"] is not None:
        bias = weight @ tensor(first.args["bias"]).double()
        if layer.args["bias"] is not None:
            bias += tensor(layer.args["bias"])
        args.append(rewriter.param(layer, f"{name}.merged.bias", bias.float()))
    elif layer.args["bias"] is not None:
        args.append(layer.args["bias"])
    return rewriter.insert(layer, "aten.linear.default", *args)
