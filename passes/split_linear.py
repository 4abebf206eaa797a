"""Make a slice of a layer's outputs a layer of its own, where another layer reads the slice.

    h: f32[N, 12] = aten.linear.default(x, w, b)
    k: f32[N, 4] = aten.slice.Tensor(h, 1, 4, 8)
    y: f32[N, 4] = aten.linear.default(k, v)
  becomes
    k: f32[N, 4] = aten.linear.default(x, w[4:8], b[4:8])
    y: f32[N, 4] = aten.linear.default(k, v)

and so for the other slices of h, so that the two layers can be one, and no slice is copied.
"""

from __future__ import annotations

from gnnfx.ir.patterns import has_params, is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

_LINEAR = "aten.linear.default"


class SplitLinear(Pass):
    """Replace slices of keys, queries and values that one layer makes by a layer for each."""

    name = "split-linear"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for layer in rewriter.program.find(_LINEAR):
            slices = layer.users
            if not has_params(layer) or not all(map(_is_slice, slices)):
                continue
            if not any(_feeds_layer(part) for part in slices):
                continue
            for part in slices:
                rewriter.replace(part, _split(rewriter, layer, part))
            ctx.did(layer, f"is {len(slices)} layers, one for each slice that is read")
        return rewriter.finish()


def _is_slice(user: Instr) -> bool:
    """Whether `user` takes neighbouring channels, at places that are known, of a matrix."""
    if user.op != "aten.slice.Tensor" or len(user.shape) != 2:
        return False
    args = user.args
    bounds = (args["start"], args["end"], args["step"], user.shape[1])
    return args["dim"] in (1, -1) and args["step"] == 1 and all(type(b) is int for b in bounds)


def _feeds_layer(part: Instr) -> bool:
    return any(user.op == _LINEAR and has_params(user) for user in part.users)


def _split(rewriter: Rewriter, layer: Instr, part: Instr) -> Instr:
    start = part.args["start"] % layer.shape[1]
    args = [layer.arg]
    for param in (layer.args["weight"], layer.args["bias"]):
        if is_param(param):
            rows = rewriter.program.tensor(param)[start : start + part.shape[1]]
            args.append(rewriter.param(part, f"{param.param}.{start}", rows.contiguous()))
    return rewriter.insert(part, _LINEAR, *args)
