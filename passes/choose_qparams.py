"""Give every observed value and every weight that meets one its scale: the simulation.

    a: f32[N, 8] = observe(x, 'x')
    y: f32[N, 4] = aten.linear.default(a, w)
  becomes
    a: f32[N, 8] = fake_quantize(x, scale, zero_point, 8)
    v: f32[4, 8] = dequantize_weight(codes, scales, 8, 8)
    y: f32[N, 4] = aten.linear.default(a, v)

Values with a calibrated range get constants; without calibration, scales are computed from the
values themselves each time the program runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gnnfx.errors import PolicyError
from gnnfx.ir.patterns import row_vector
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.degree import DEGREE_BUCKETS
from gnnfx.kernels.quantize import pack
from gnnfx.kernels.weight import weight_codes, weight_scale
from gnnfx.observers import bucket_name, qparams_of, shared_range
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.fold_attention_scores import head_scores
from gnnfx.policy import Quantize


class ChooseQparams(Pass):
    """Replace observers by fake-quantizers, and the weights beside them by integer codes."""

    name = "choose-qparams"
    needs = frozenset({"observed"})
    gives = frozenset({"simulated"})
    numerics = Numerics.LOSSY

    def run(self, program: Program, ctx: PassContext) -> Program:
        quantize = ctx.policy.quantize
        assert quantize is not None
        rewriter = Rewriter(program, self.name)
        weights: dict[str, Instr] = {}
        widths = weight_bits(rewriter.program, quantize)
        for observe in rewriter.program.find("observe"):
            for user in observe.users:
                if user.op == "aten.linear.default":
                    _quantize_weight(rewriter, user, ctx, weights, widths)
                elif user.op == "aggregate" and user.args["weight"] is not None:
                    _quantize_edge_weight(rewriter, user)
            if observe.args["bucket"] is not None:
                rewriter.replace(observe, _scaled_by_degree(rewriter, observe, ctx))
            else:
                rewriter.replace(observe, _fake_quantize(rewriter, observe, ctx))
        return rewriter.finish()


def _scaled_by_degree(rewriter: Rewriter, observe: Instr, ctx: PassContext) -> Instr:
    """Each row scaled by its bucket before it is rounded, and back: fake_quantize(x * r) / r."""
    name, bits = observe.args["name"], observe.args["bits"]
    if name in ctx.degree_scales:
        factors, (number, zero_point) = ctx.degree_scales[name], ctx.qparams[name]
    else:
        names = {bucket_name(name, b): b for b in range(DEGREE_BUCKETS)}
        found = {b: ctx.ranges[n] for n, b in names.items() if n in ctx.ranges}
        if not found:
            raise PolicyError(
                f"scales='degree' needs the ranges of value {name!r} by degree; pass calibration"
            )
        factors, shared = shared_range(found, DEGREE_BUCKETS)
        number, zero_point = _typed(*qparams_of(*shared, bits))
    tensors = {"degree_scale": factors, "scale": number, "zero_point": zero_point}
    by_bucket, scale, zero = (
        rewriter.param(observe, f"{name}.{part}", tensor) for part, tensor in tensors.items()
    )
    factor = rewriter.insert(observe, "gather", by_bucket, observe.args["bucket"])
    coded = rewriter.insert(observe, "fake_quantize", observe.arg, scale, zero, bits, factor)
    back = rewriter.insert(observe, "aten.reciprocal.default", factor)
    column = rewriter.insert(observe, "aten.view.default", back, [-1, 1])
    return rewriter.insert(observe, "aten.mul.Tensor", coded, column)


def _fake_quantize(rewriter: Rewriter, observe: Instr, ctx: PassContext) -> Instr:
    bits = observe.args["bits"]
    value, row_scale = _row_scaled(observe.arg)
    name = observe.args["name"]
    known = ctx.qparams.get(name)
    if known is None and name in ctx.ranges:
        known = _typed(*qparams_of(*ctx.ranges[name], bits))
    if known is not None:
        scale, zero_point = (
            rewriter.param(observe, f"{name}.{part}", number)
            for part, number in zip(("scale", "zero_point"), known, strict=True)
        )
    else:
        symmetric = not _never_negative(observe.arg)
        made = rewriter.insert(observe, "choose_qparams", value, bits, symmetric, row_scale)
        scale, zero_point = (rewriter.insert(observe, "getitem", made, i) for i in range(2))
    return rewriter.insert(observe, "fake_quantize", value, scale, zero_point, bits, row_scale)


def _typed(scale: float, zero_point: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32)


def _row_scaled(value: Instr) -> tuple[Instr, Instr | None]:
    """(x, c) of x * c, where c scales rows; the quantizer applies it on the way."""
    if value.op == "aten.mul.Tensor" and len(value.users) == 1 and len(value.shape) == 2:
        left, right = value.args["self"], value.args["other"]
        scale = row_vector(right)
        whole = isinstance(left, Instr) and left.shape == value.shape
        if whole and scale is not None and scale.shape == value.shape[:1]:
            return left, scale
    return value, None


def _never_negative(value: Instr) -> bool:
    if value.op == "aten.mul.Tensor":
        return False
    return value.op == "aten.relu.default" or (
        value.definition is not None and value.args.get("activation") == "relu"
    )


def weight_bits(program: Program, quantize: Quantize) -> dict[str, int]:
    """The width of each weight that meets codes by its name; of a shared one the most wanted."""
    widths: dict[str, int] = {}
    for reader, _, weight in weighted(program):
        bits = quantize.weight_bits_of(reader.module)
        widths[weight.param] = max(bits, widths.get(weight.param, 0))
    return widths


def weighted(program: Program) -> Iterator[tuple[Instr, Instr, Instr]]:
    """(reader, value, weight) of linear layers and, in training, of scores of attention."""
    for reader in program.find("aten.linear.default", "aten.sum.dim_IntList"):
        if reader.op == "aten.linear.default":
            if (weight := reader.args["weight"]).op == "param":
                yield reader, reader.arg, weight
        elif (scores := head_scores(reader)) is not None:
            yield reader, *scores


def _quantize_weight(
    rewriter: Rewriter,
    linear: Instr,
    ctx: PassContext,
    done: dict[str, Instr],
    widths: dict[str, int],
) -> None:
    """Symmetric codes per output channel; one set of codes for a weight that layers share."""
    param = linear.args["weight"]
    if param.op != "param":
        return
    if param.param not in done:
        weight, name = rewriter.program.tensor(param), param.param
        bits = widths[name]
        scale = ctx.weight_scales.get(name, weight_scale(weight, bits))
        codes = weight_codes(weight, scale, bits)
        packed = rewriter.param(linear, f"{name}.codes", pack(codes, bits))
        scales = rewriter.param(linear, f"{name}.scale", scale)
        done[name] = rewriter.insert(
            linear, "dequantize_weight", packed, scales, weight.shape[1], bits
        )
    rewriter.set_arg(linear, "weight", done[param.param])


def _quantize_edge_weight(rewriter: Rewriter, aggregate: Instr) -> None:
    """Edge weights as 8-bit codes with a scale of their own for each graph."""
    weight = aggregate.args["weight"]
    if weight.op == "fake_quantize":
        return
    made = rewriter.insert(aggregate, "choose_qparams", weight, 8, True)
    scale, zero_point = (rewriter.insert(aggregate, "getitem", made, i) for i in range(2))
    codes = rewriter.insert(aggregate, "fake_quantize", weight, scale, zero_point, 8)
    rewriter.set_arg(aggregate, "weight", codes)
