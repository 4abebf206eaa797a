"""Compute both of GAT's attention scores in one linear layer, which reads the features once.

    s: f32[N, 4] = linear(x, w)
    d: f32[N, 4] = linear(x, v)
    z: f32[N, 32] = attend_gat(h, s, d, rowptr, src)
  becomes
    y: f32[N, 8] = linear(x, u)                       u: f32[8, K] = [w, v]
    s: f32[N, 4] = aten.slice.Tensor(y, 1, 0, 4)
    d: f32[N, 4] = aten.slice.Tensor(y, 1, 4, 8)
    z: f32[N, 32] = attend_gat(h, s, d, rowptr, src)

and likewise of integer layers.
"""

from __future__ import annotations

from typing import Any

import torch

from gnnfx.ir.patterns import is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

_LAYERS = ("linear", "quantized_linear")
_JOINED = ("weight", "weight_scale", "bias")  # [H, ...]: one behind the other


class MergeAttentionScores(Pass):
    """Put the weights of the two layers that only an attention reads one behind the other."""

    name = "merge-attention-scores"
    needs = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for attend in rewriter.program.find("attend_gat", "quantized_attend_gat"):
            first, second = attend.args["a_src"], attend.args["a_dst"]
            if not _fit(first, second, attend):
                continue
            args = {name: _joined(rewriter, first, second, name) for name in first.args}
            merged = rewriter.insert(attend, first.op, **args, like=first)
            heads = first.shape[1]
            for layer, start in ((first, 0), (second, heads)):
                place = (merged, 1, start, start + heads)
                part = rewriter.insert(attend, "aten.slice.Tensor", *place, like=layer)
                rewriter.replace(layer, part)
        return rewriter.finish()


def _fit(first: Any, second: Any, attend: Instr) -> bool:
    """Whether both are layers on the same rows that differ in parameters alone."""
    if not isinstance(first, Instr) or not isinstance(second, Instr) or first == second:
        return False
    if first.op not in _LAYERS or first.op != second.op or first.args["residual"] is not None:
        return False
    if any(sole_user(layer) != attend for layer in (first, second)):
        return False
    return all(
        name in _JOINED and is_param(value) and is_param(second.args[name])
        for name, value in first.args.items()
        if value != second.args[name]
    )


def _joined(rewriter: Rewriter, first: Instr, second: Instr, name: str) -> Any:
    """An argument of the merged layer."""
    value = first.args[name]
    if name not in _JOINED or value is None:
        return value
    tensors = [rewriter.program.tensor(layer.args[name]) for layer in (first, second)]
    return rewriter.param(first, f"{value.param}.merged", torch.cat(tensors))
