"""Weigh messages by their own softmax where they are reduced, as GENConv does.

    j: f32[E, 8] = gather(x, src)
    m: f32[E, 8] = aten.add.Tensor(aten.relu.default(j), 1e-07)
    l: f32[E, 8] = aten.mul.Tensor(m, t)                       t: f32[1]
    w: f32[E, 8] = edge_softmax(l, dst, n)
    y: f32[N, 8] = scatter(aten.mul.Tensor(m, w), dst, n, 'sum')
  becomes
    y: f32[N, 8] = aggregate_messages(x, ..., 'relu', 0.0, 'softmax', 1e-07, t)

so that neither messages nor weights are stored, and codes are those of x, not of weighed messages,
which nodes of many edges have a small share of.
"""

from __future__ import annotations

from typing import Any

import torch

from gnnfx.ir.patterns import is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.fuse_messages import EdgeSum, edge_sum, insert_messages

_MULTIPLY = "aten.mul.Tensor"


class FuseSoftmaxMessages(Pass):
    """Replace sums of messages times their softmax by `aggregate_messages`."""

    name = "fuse-softmax-messages"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for scatter in rewriter.program.find("scatter"):
            product, dst, _, reduce = scatter.args.values()
            if reduce != "sum" or sole_user(product) is None or len(product.shape) != 2:
                continue
            if (weighed := _weighed(product, dst)) is None:
                continue
            messages, heat = weighed
            match edge_sum(messages, dst):
                case str(reason):
                    ctx.missed(scatter, reason)
                case EdgeSum() as found:
                    temperature = _temperature(rewriter, scatter, heat, int(product.shape[1]))
                    fused = insert_messages(rewriter, scatter, found, "softmax", temperature)
                    rewriter.replace(scatter, fused)
                    ctx.did(scatter, "weighs its messages while it makes and reduces them")
        return rewriter.finish()


def _weighed(product: Instr, dst: Instr) -> tuple[Instr, Any] | None:
    """(m, t) of m * edge_softmax(m * t, dst) with a number or parameter t, or None for others."""
    for messages, softmax in _factors(product):
        if not isinstance(softmax, Instr) or softmax.op != "edge_softmax":
            continue
        logits, index, _ = softmax.positional
        if index != dst or sole_user(softmax) is None or messages.dtype is not torch.float32:
            return None
        if logits == messages:
            return messages, 1
        if sole_user(logits) is not None:
            heats = [t for m, t in _factors(logits) if m == messages and _is_temperature(t)]
            return (messages, heats[0]) if heats else None
    return None


def _factors(product: Instr) -> list[tuple[Any, Any]]:
    """The factors of a product in both orders."""
    if product.op != _MULTIPLY:
        return []
    left, right = product.args["self"], product.args["other"]
    return [(left, right), (right, left)]


def _is_temperature(value: Any) -> bool:
    """Whether `value` is a number, or a parameter [], [1], [C] or [1, C]."""
    if isinstance(value, int | float):
        return True
    return is_param(value) and all(size == 1 for size in value.shape[:-1])


def _temperature(rewriter: Rewriter, place: Instr, heat: Any, channels: int) -> Instr | None:
    """`heat` as a parameter [C]; None for 1."""
    if heat == 1:
        return None
    if isinstance(heat, Instr):
        name, values = f"{heat.param}.by_channel", rewriter.program.tensor(heat)
    else:
        name, values = f"{place.name}.temperature", torch.tensor(float(heat))
    return rewriter.param(place, name, values.float().reshape(-1).expand(channels).contiguous())
