"""Turn fake-quantizers and the ops behind them into integer ops: what was simulated is executed.

    a: f32[N, 8] = fake_quantize(x, s, z, 8)
    v: f32[4, 8] = dequantize_weight(codes, t, 8, 8)
    y: f32[N, 4] = aten.linear.default(a, v, b)
  becomes
    q: i8[N, 8] = quantize(x, s, z, 8)
    y: f32[N, 4] = quantized_linear(q, s, z, codes, t, 8, b)

and likewise for aggregate and attention.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import row_vector
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class FoldQuantization(Pass):
    """Replace float ops on simulated codes by ops on codes."""

    name = "fold-quantization"
    needs = frozenset({"simulated"})
    gives = frozenset({"integer"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        folder = _Folder(rewriter)
        for instr in rewriter.program.find(*_FOLDS):
            if (folded := _FOLDS[instr.op](folder, instr)) is not None:
                rewriter.replace(instr, folded)
                ctx.did(instr, f"runs on integer codes ({folded.op})")
        return rewriter.finish()


class _Folder:
    """Makes the codes of each fake-quantized value once."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self._codes: dict[Instr, Instr] = {}

    def codes(self, value: Any) -> tuple[Instr, Instr, Instr, int] | None:
        """(codes, scale, zero point, bits) of a fake-quantized value, looked up through views."""
        if not isinstance(value, Instr):
            return None
        if value.op == "aten.view.default" and (inner := self.codes(value.arg)) is not None:
            if value not in self._codes:
                codes, bits = inner[0], inner[3]
                if bits != 8:
                    # Packed codes of a row cannot be told apart by head.
                    channels = value.arg.shape[-1]
                    codes = self.rewriter.insert(value, "unpack", codes, channels, bits)
                view = self.rewriter.insert(value, "aten.view.default", codes, value.args["size"])
                self._codes[value] = view
            return self._codes[value], *inner[1:3], 8  # one code a byte from here on
        if value.op != "fake_quantize" or value.args["kept"] is not None:
            return None
        x, scale, zero_point, bits, row_scale, _ = value.args.values()
        if value not in self._codes:
            self._codes[value] = self.rewriter.insert(
                value, "quantize", x, scale, zero_point, bits, row_scale
            )
        return self._codes[value], scale, zero_point, bits


def _fold_linear(folder: _Folder, linear: Instr) -> Instr | None:
    value, row_scale = _scaled_back(linear.arg)
    quantized, weight = folder.codes(value), linear.args["weight"]
    if quantized is None or weight.op != "dequantize_weight":
        return None
    x, scale, zero_point, bits = quantized
    codes, weight_scale, channels, weight_bits = weight.args.values()
    return folder.rewriter.insert(
        linear,
        "quantized_linear",
        x,
        scale,
        zero_point,
        codes,
        weight_scale,
        channels,
        linear.args["bias"],
        bits=bits,
        weight_bits=weight_bits,
        row_scale=row_scale,
    )


def _scaled_back(value: Instr) -> tuple[Instr, Instr | None]:
    """(codes, 1 / r) of codes that each row's scale r is divided out of again."""
    if value.op != "aten.mul.Tensor" or (codes := value.args["self"]).op != "fake_quantize":
        return value, None
    back = row_vector(value.args["other"])
    if back is None or back.op != "aten.reciprocal.default":
        return value, None
    return (codes, back) if back.arg == codes.args["row_scale"] else (value, None)


def _fold_aggregate(folder: _Folder, aggregate: Instr) -> Instr | None:
    args = aggregate.args
    quantized, weight = folder.codes(args.pop("x")), args.pop("weight")
    if quantized is None:
        return None
    x, scale, zero_point, bits = quantized
    weights: dict[str, Instr] = {}
    if weight is not None:
        if (found := folder.codes(weight)) is None:
            return None
        weights = {"weight": found[0], "weight_scale": found[1]}
    rowptr, src = args.pop("rowptr"), args.pop("src")
    channels = aggregate.shape[-1]
    return folder.rewriter.insert(
        aggregate,
        "quantized_aggregate",
        x,
        scale,
        zero_point,
        rowptr,
        src,
        channels,
        **weights,
        **args,
        bits=bits,
    )


def _fold_aggregate_many(folder: _Folder, aggregate: Instr) -> Instr | None:
    x, rowptr, src, *rest = aggregate.args.values()
    if (quantized := folder.codes(x)) is None:
        return None
    codes, scale, zero_point, bits = quantized
    args = (codes, scale, zero_point, rowptr, src, x.shape[-1], *rest)
    return folder.rewriter.insert(aggregate, "quantized_aggregate_many", *args, bits=bits)


def _fold_aggregate_messages(folder: _Folder, aggregate: Instr) -> Instr | None:
    args = aggregate.args
    if (quantized := folder.codes(x := args.pop("x"))) is None:
        return None
    codes, scale, zero_point, bits = quantized
    return folder.rewriter.insert(
        aggregate,
        "quantized_aggregate_messages",
        codes,
        scale,
        zero_point,
        x.shape[-1],
        **args,
        bits=bits,
    )


def _fold_gat(folder: _Folder, attend: Instr) -> Instr | None:
    x, *rest = attend.args.values()
    if (quantized := folder.codes(x)) is None:
        return None
    return folder.rewriter.insert(attend, "quantized_attend_gat", *quantized[:3], *rest)


def _fold_gatv2(folder: _Folder, attend: Instr) -> Instr | None:
    x_src, x_dst, *rest = attend.args.values()
    left, right = folder.codes(x_src), folder.codes(x_dst)
    if left is None or right is None:
        return None
    return folder.rewriter.insert(attend, "quantized_attend_gatv2", *left[:3], *right[:3], *rest)


def _fold_dot(folder: _Folder, attend: Instr) -> Instr | None:
    query, key, value, *rest = attend.args.values()
    keys, values = folder.codes(key), folder.codes(value)
    if keys is None or values is None:
        return None
    codes = *keys[:3], *values[:3]
    return folder.rewriter.insert(attend, "quantized_attend_dot", query, *codes, *rest)


_FOLDS = {
    "aten.linear.default": _fold_linear,
    "aggregate": _fold_aggregate,
    "aggregate_many": _fold_aggregate_many,
    "aggregate_messages": _fold_aggregate_messages,
    "attend_gat": _fold_gat,
    "attend_gatv2": _fold_gatv2,
    "attend_dot": _fold_dot,
}
