"""Let aggregates and quantized layers finish their rows: self term, bias, residual, ReLU or ELU.

    a: f32[N, 8] = aggregate(x, rowptr, src)
    b: f32[N, 8] = aten.add.Tensor(a, bias)
    y: f32[N, 8] = aten.relu.default(b)
  becomes
    y: f32[N, 8] = aggregate(x, rowptr, src, bias=bias, activation='relu')

so a row is written once, when it is complete.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import (
    depends_on_params_alone,
    is_feature,
    is_param,
    row_vector,
    used_elsewhere,
)
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.epilogue import ACTIVATION_OPS
from gnnfx.pass_manager import Numerics, Pass, PassContext

_OPS = {
    "linear",
    "aggregate",
    "aggregate_edge_network",
    "aggregate_messages",
    "quantized_aggregate",
    "quantized_aggregate_messages",
    "quantized_linear",
}
_ATTENTION = {"attend_gat", "attend_gatv2", "attend_dot"}
_OPS |= _ATTENTION | {f"quantized_{op}" for op in _ATTENTION}


class FuseEpilogue(Pass):
    """Absorb the elementwise instructions that follow a row-producing op."""

    name = "fuse-epilogue"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for instr in rewriter.program.instrs:
            if (found := _match(instr)) is None:
                continue
            producer, changes = found
            if (reason := used_elsewhere(producer, instr)) is not None:
                ctx.missed(instr, reason)
                continue
            args = {**producer.args, **_reshaped(rewriter, instr, changes)}
            fused = rewriter.insert(instr, producer.op, **args, like=producer)
            rewriter.replace(instr, fused)
        return rewriter.finish()


def _reshaped(rewriter: Rewriter, instr: Instr, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes with a self weight as a 0-d value and row scales as a vector."""
    for name, size in (("self_weight", []), ("row_scale", [-1])):
        value = changes.get(name)
        if value is not None and len(value.shape) != len(size):
            view = rewriter.insert(instr, "aten.view.default", value, size)
            return {**changes, name: view}
    return changes


def _match(instr: Instr) -> tuple[Instr, dict[str, Any]] | None:
    """The op in front of `instr` and the arguments that make it do what `instr` does."""
    for name, op in ACTIVATION_OPS.items():
        if instr.op == op and _open(instr.arg) and (name != "elu" or _is_plain_elu(instr)):
            return instr.arg, {"activation": name}
    if instr.op not in ("aten.add.Tensor", "aten.mul.Tensor") or instr.args.get("alpha", 1) != 1:
        return None
    left, right = instr.args["self"], instr.args["other"]
    for producer, other in ((left, right), (right, left)):
        if not isinstance(producer, Instr) or not isinstance(other, Instr) or not _open(producer):
            continue
        if instr.shape != producer.shape:
            continue
        change = _add(producer, other) if instr.op == "aten.add.Tensor" else _mul(producer, other)
        if change is not None:
            return producer, change
    return None


def _is_plain_elu(instr: Instr) -> bool:
    return all(instr.args[k] == 1 for k in ("alpha", "scale", "input_scale"))


def _open(value: Any) -> bool:
    """Whether `value` is a row-producing op that still writes float rows without activation."""
    if not isinstance(value, Instr) or value.op not in _OPS or len(value.shape) != 2:
        return False
    return value.args["activation"] == "none" and value.args.get("out_scale") is None


def _add(producer: Instr, other: Instr) -> dict[str, Any] | None:
    args = producer.args
    if is_param(other) and other.shape == producer.shape[1:]:
        return {"bias": other} if args["bias"] is None else None
    if args["residual"] is not None or other.shape != producer.shape or not is_feature(other):
        return None
    bare = producer.op == "aggregate" and args["self_weight"] is None and args["bias"] is None
    weight = _self_weight(other, args["x"]) if bare else None
    return {"residual": other} if weight is None else {"self_weight": weight}


def _self_weight(value: Instr, x: Instr) -> Instr | None:
    """The parameter w of w * x, where x is what the aggregate reads."""
    if value.op != "aten.mul.Tensor":
        return None
    left, right = value.args["self"], value.args["other"]
    for weight, features in ((left, right), (right, left)):
        if features == x and depends_on_params_alone(weight) and weight.shape in ((), (1,)):
            return weight  # type: ignore[no-any-return]
    return None


def _mul(producer: Instr, other: Instr) -> dict[str, Any] | None:
    args = producer.args
    # A vector by itself would scale channels; a column scales rows.
    column = other.shape == (producer.shape[0], 1)
    scale = row_vector(other) if len(other.shape) == len(producer.shape) else None
    if scale is None and column:
        scale = other
    taken = ("row_scale", "bias", "residual", "self_weight")
    if scale is None or "row_scale" not in args or any(args.get(k) is not None for k in taken):
        return None
    return {"row_scale": scale}
