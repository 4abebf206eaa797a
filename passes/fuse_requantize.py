"""Let an integer op write the codes that the next one reads.

    y: f32[N, 8] = quantized_aggregate(q, ...)
    r: i8[N, 8] = quantize(y, s, z)
  becomes
    r: i8[N, 8] = quantized_aggregate(q, ..., out_scale=s, out_zero_point=z)

so that no float copy of the activation is written between them.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import used_elsewhere
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext

_PRODUCERS = {
    "quantized_linear",
    "quantized_linear_sum",
    "quantized_aggregate",
    "quantized_aggregate_many",
    "quantized_aggregate_messages",
    "quantized_attend_gat",
    "quantized_attend_gatv2",
    "quantized_attend_dot",
}


class FuseRequantize(Pass):
    """Move a quantizer into the epilogue of the op before it."""

    name = "fuse-requantize"
    needs = frozenset({"integer"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for quantize in rewriter.program.find("quantize"):
            producer = quantize.arg
            if producer.op not in _PRODUCERS or len(quantize.shape) != 2:
                continue
            match _refusal(producer, quantize):
                case str(reason):
                    ctx.missed(quantize, reason)
                case None:
                    args = {**producer.args, **_output(producer, quantize)}
                    fused = rewriter.insert(quantize, producer.op, **args, like=producer)
                    rewriter.replace(quantize, fused)
        return rewriter.finish()


def _refusal(producer: Instr, quantize: Instr) -> str | None:
    args = producer.args
    if (reason := used_elsewhere(producer, quantize)) is not None:
        return f"its float result is needed: {reason}"
    if args.get("out_scale") is not None:
        return f"{producer} already writes codes"
    for name in ("scale", "zero_point"):
        if quantize.args[name].op == "getitem":
            return "its range is computed from the float result each time (no calibration)"
    if quantize.args["row_scale"] is not None and "row_scale" not in args:
        return f"{producer.op} does not scale rows"
    if quantize.args["row_scale"] is not None and not _commutes_with_rows(args):
        return "its rows are scaled after a bias, a residual or an activation"
    return None


def _commutes_with_rows(args: dict[str, Any]) -> bool:
    """Whether scaling the rows of the result is scaling the rows of the sum."""
    extras = ("bias", "residual", "self_weight", "row_scale")
    return all(args.get(k) is None for k in extras) and args["activation"] == "none"


def _output(producer: Instr, quantize: Instr) -> dict[str, Any]:
    args = quantize.args
    output = {
        "out_scale": args["scale"],
        "out_zero_point": args["zero_point"],
        "out_bits": args["bits"],
    }
    if args["row_scale"] is not None:
        output["row_scale"] = args["row_scale"]
    return output
