"""Compute GAT's attention scores as a linear layer, of what is narrower: its input or its output.

    h: f32[N, 32] = aten.linear.default(x, w)
    v: f32[N, 4, 8] = aten.view.default(h, [-1, 4, 8])
    m: f32[N, 4, 8] = aten.mul.Tensor(v, att)
    a: f32[N, 4] = aten.sum.dim_IntList(m, [-1])
  becomes
    a: f32[N, 4] = aten.linear.default(x, w')         w'[h] = sum over c of att[h, c] * w[h, c]

since a = att . (W x) = (att . W) x, so [N, H, C] is not written.  Where x is wider than h, or
something else than a float linear layer made h,

    a: f32[N, 4] = aten.linear.default(h, w'')        w''[h] = att[h] in the channels of head h

where trained weights are kept, only of an h that is rounded, as the simulation computes it.
"""

from __future__ import annotations

import torch

from gnnfx.ir.patterns import is_param, tensor_of
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext


class FoldAttentionScores(Pass):
    """Make a per-head dot product with a parameter a linear layer, or a part of the one before.

    keep_weights: take the scores of codes alone, with the steps that training gave the vectors.
    """

    name = "fold-attention-scores"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def __init__(self, keep_weights: bool = False) -> None:
        self.keep_weights = keep_weights

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for score in rewriter.program.find("aten.sum.dim_IntList"):
            match = head_scores(score)
            if match is None or (self.keep_weights and match[0].op != "observe"):
                continue
            if (steps := ctx.weight_scales.get(match[1].param)) is not None:
                ctx.weight_scales[_spread_name(match[1])] = steps
            rewriter.replace(score, _scores(rewriter, score, *match))
        return rewriter.finish()


def head_scores(score: Instr) -> tuple[Instr, Instr] | None:
    """(h, attention vector) of sum(view(h) * attention, last dimension)."""
    if score.op != "aten.sum.dim_IntList":
        return None
    product = score.arg
    if score.args["dim"] != [-1] or score.args["keepdim"] or product.op != "aten.mul.Tensor":
        return None
    view, attention = product.args["self"], product.args["other"]
    if not isinstance(attention, Instr) or not isinstance(view, Instr):
        return None
    if is_param(view):
        view, attention = attention, view
    if not is_param(attention) or view.op != "aten.view.default" or len(view.shape) != 3:
        return None
    fits = attention.shape[-2:] == view.shape[1:] and attention.shape[:-2] in ((), (1,))
    matrix = len(view.arg.shape) == 2 and view.arg.dtype == torch.float32
    return (view.arg, attention) if fits and matrix else None


def _scores(rewriter: Rewriter, score: Instr, linear: Instr, attention: Instr) -> Instr:
    program = rewriter.program
    att = program.tensor(attention).double()
    heads, width = att.shape[-2:]
    weight = _weight(program, linear)
    if weight is None or heads * width < weight.shape[1]:
        param = rewriter.param(score, _spread_name(attention), spread(att).float())
        return rewriter.insert(score, "aten.linear.default", linear, param)
    by_head = weight.double().view(heads, width, -1)
    folded = (by_head * att.view(heads, width, 1)).sum(1).float()
    args = [linear.arg, rewriter.param(score, f"{attention.param}.folded", folded)]
    if (bias := tensor_of(program, linear.args["bias"])) is not None:
        shift = (bias.double().view(heads, width) * att.view(heads, width)).sum(1).float()
        args.append(rewriter.param(score, f"{attention.param}.bias", shift))
    return rewriter.insert(score, "aten.linear.default", *args)


def _spread_name(attention: Instr) -> str:
    return f"{attention.param}.spread"


def spread(attention: torch.Tensor) -> torch.Tensor:
    """The rows of `attention` [..., H, C], each in the channels of its head: [H, H * C]."""
    heads, channels = attention.shape[-2:]
    apart = torch.diag_embed(attention.reshape(heads, channels).t())  # [C, H, H]
    return apart.permute(1, 2, 0).reshape(heads, heads * channels)


def _weight(program: Program, linear: Instr) -> torch.Tensor | None:
    """The weight of a float linear layer; None for any other instruction."""
    return tensor_of(program, linear.args["weight"]) if linear.op == "aten.linear.default" else None
