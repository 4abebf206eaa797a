"""Let quantized linear layers scale and shift their channels themselves.

    y: f32[N, 4] = quantized_linear(q, s, z, codes, t, 8, b)
    a: f32[N, 4] = aten.mul.Tensor(y, g)
    c: f32[N, 4] = aten.add.Tensor(a, h)
  becomes
    c: f32[N, 4] = quantized_linear(q, s, z, codes, t', 8, b')     t' = t * g, b' = b * g + h

A batch norm behind a layer that was trained with rounding ends up so: the codes stay as training
left them, and what they stand for takes the norm in.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gnnfx.ir.patterns import is_param, sole_user, tensor_of
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext


class FoldChannelScale(Pass):
    """Fold constants per channel into the scales and the bias of quantized linear layers."""

    name = "fold-channel-scale"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for instr in rewriter.program.find("aten.mul.Tensor", "aten.add.Tensor"):
            if (found := _match(rewriter.program, instr)) is None:
                continue
            layer, constant = found
            args = layer.args
            bias = tensor_of(rewriter.program, args["bias"])
            if instr.op == "aten.mul.Tensor":
                scale = rewriter.program.tensor(args["weight_scale"]) * constant
                args["weight_scale"] = _param(rewriter, args["weight_scale"], scale)
                if bias is not None:
                    args["bias"] = _param(rewriter, args["bias"], bias * constant)
            else:
                total = constant if bias is None else bias + constant
                args["bias"] = _param(rewriter, args["bias"] or args["weight_scale"], total)
            rewriter.replace(instr, rewriter.insert(instr, layer.op, **args, like=layer))
        return rewriter.finish()


def _match(program: Program, instr: Instr) -> tuple[Instr, Tensor] | None:
    """The layer in front of `instr` and the constant [O] that `instr` applies to its channels."""
    if instr.args.get("alpha", 1) != 1:
        return None
    left, right = instr.args["self"], instr.args["other"]
    for layer, other in ((left, right), (right, left)):
        if not _takes(layer, instr) or not is_param(other) or other.shape != layer.shape[1:]:
            continue
        return layer, program.tensor(other)
    return None


def _takes(layer: Any, user: Instr) -> bool:
    if not isinstance(layer, Instr) or layer.op != "quantized_linear" or sole_user(layer) != user:
        return False
    args = layer.args
    plain = args["activation"] == "none" and args["out_scale"] is None and args["residual"] is None
    return plain and (args["bias"] is None or is_param(args["bias"]))


def _param(rewriter: Rewriter, old: Instr, tensor: Tensor) -> Instr:
    return rewriter.param(old, f"{old.param}.folded", tensor)
