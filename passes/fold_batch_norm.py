"""Fold batch norm in eval mode into the linear layer before it.

    h: f32[N, 8] = aten.linear.default(x, w, b)
    t = aten._native_batch_norm_legit_no_training.default(h, g, c, mean, var, 0.1, 1e-05)
    y: f32[N, 8] = getitem(t, 0)
  becomes
    y: f32[N, 8] = aten.linear.default(x, w', b')     w' = w * g / sqrt(var + eps)

Aggregation acts on each channel alone, so a norm after it reaches the linear layer before it.
What has no linear layer in reach becomes one multiply and one add.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.ir.patterns import constant_value, is_param, row_vector, sole_user, tensor_of
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"


class FoldBatchNorm(Pass):
    """Remove batch norms whose statistics are frozen.

    keep_weights: leave the weights as training has rounded them; every norm is a multiply-add.
    """

    name = "fold-batch-norm"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def __init__(self, keep_weights: bool = False) -> None:
        self.keep_weights = keep_weights

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for norm in rewriter.program.find(BATCH_NORM):
            result = sole_user(norm)
            if result is None or result.op != "getitem":
                ctx.missed(norm, "its batch statistics are used as well")
                continue
            scale, shift = _affine(rewriter.program, norm)
            reachable = len(norm.arg.shape) == 2 and not self.keep_weights
            if reachable and _fold(rewriter, norm.arg, scale, shift):
                rewriter.replace(result, norm.arg)
                ctx.did(norm, "folded into the linear layer before it")
            else:
                rewriter.replace(result, _multiply_add(rewriter, norm, scale, shift))
                ctx.missed(norm, self._reason)
        return rewriter.finish()

    @property
    def _reason(self) -> str:
        if self.keep_weights:
            return "the weights keep the codes that training gave them; kept as multiply-add"
        return "no linear layer before it can absorb it; kept as multiply-add"


def _affine(program: Program, norm: Instr) -> tuple[Tensor, Tensor]:
    args = norm.args
    mean, var = (program.tensor(args[name]) for name in ("running_mean", "running_var"))
    weight, bias = (tensor_of(program, args[name]) for name in ("weight", "bias"))
    return scale_and_shift(mean, var, weight, bias, args["eps"])


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] that a batch norm in eval mode applies, from float64 arithmetic."""
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _fold(rewriter: Rewriter, value: Instr, scale: Tensor, shift: Tensor) -> bool:
    """Walk back to a linear layer; edit it and the biases on the way only if it is found."""
    biases: list[Instr] = []
    while value.op != "aten.linear.default":
        if sole_user(value) is None:
            return False
        if value.op == "aten.add.Tensor" and is_param(value.args["other"]):
            biases.append(value)
            value = value.arg
        elif value.op == "gather":
            value = value.arg
        elif not biases:
            # What follows scales or sums rows, and would do so to the shift as well.
            return False
        elif value.op == "scatter" and value.args["reduce"] in ("sum", "mean"):
            value = value.arg
        elif value.op == "aten.mul.Tensor" and (scaled := _row_scaled(value)) is not None:
            value = scaled
        else:
            return False
    if sole_user(value) is None or not is_param(value.args["weight"]):
        return False
    args = value.args
    if args["bias"] is not None and biases:
        return False
    program = rewriter.program
    weight = (program.tensor(args["weight"]).double() * scale[:, None]).float()
    name = f"{args['weight'].param}.folded"
    rewriter.set_arg(value, "weight", rewriter.param(value, name, weight))
    if biases:
        for add in biases:
            scaled_bias = program.tensor(add.args["other"]).double() * scale
            # The bias nearest to the norm takes its shift.
            added = scaled_bias + shift if add is biases[0] else scaled_bias
            name = f"{add.args['other'].param}.folded"
            rewriter.set_arg(add, "other", rewriter.param(add, name, added.float()))
        return True
    bias = tensor_of(program, args["bias"])
    folded = shift if bias is None else bias.double() * scale + shift
    name = args["bias"].param if bias is not None else f"{args['weight'].param}.bias"
    new_bias = rewriter.param(value, f"{name}.folded", folded.float())
    if len(value.node.args) > 2:
        rewriter.set_arg(value, "bias", new_bias)
    else:
        value.node.args = (*value.node.args, new_bias.node)
    return True


def _row_scaled(mul: Instr) -> Instr | None:
    """The features in features * row weight, or None."""
    left, right = mul.args["self"], mul.args["other"]
    for features, weight in ((left, right), (right, left)):
        if not isinstance(features, Instr) or features.shape != mul.shape:
            continue
        if row_vector(weight) is not None or constant_value(weight) is not None:
            return features
    return None


def _multiply_add(rewriter: Rewriter, norm: Instr, scale: Tensor, shift: Tensor) -> Instr:
    shape = (-1, *(1,) * (len(norm.arg.shape) - 2))
    module = norm.module or "norm"
    dtype = norm.arg.dtype or torch.float32
    factors = rewriter.param(norm, f"{module}.scale", scale.to(dtype).view(shape))
    shifts = rewriter.param(norm, f"{module}.shift", shift.to(dtype).view(shape))
    scaled = rewriter.insert(norm, "aten.mul.Tensor", norm.arg, factors)
    return rewriter.insert(norm, "aten.add.Tensor", scaled, shifts)
