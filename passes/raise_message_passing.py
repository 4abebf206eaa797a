"""Raise ATen spellings of message passing to gather, scatter and edge_softmax.

    m: f32[E, 8] = aten.index_select.default(x, 0, src)
    i: i64[E, 8] = aten.expand.default(...)          # dst, once per channel
    z: f32[N, 8] = aten.new_zeros.default(m, [n, 8])
    y: f32[N, 8] = aten.scatter_add.default(z, 0, i, m)
  becomes
    m: f32[E, 8] = gather(x, src)
    y: f32[N, 8] = scatter(m, dst, n, 'sum')

Patterns follow dataflow, never layer classes, so hand-written layers are raised as PyG's are.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import constant_value, is_param, row_vector
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.quotients import Raised, mean, softmax

_REDUCES = {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min", "prod": "mul"}


class RaiseMessagePassing(Pass):
    """Replace indexed reads and indexed reductions by gnnfx's message-passing ops."""

    name = "raise-message-passing"
    needs = frozenset({"canonical"})
    gives = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for instr in rewriter.program.instrs:
            match _raised(instr):
                case ("scatter", (messages, index, start, reduce)):
                    rows = _rows(rewriter, instr, start)
                    total = rewriter.insert(instr, "scatter", messages, index, rows, reduce)
                    if constant_value(start) != 0.0:
                        total = rewriter.insert(instr, "aten.add.Tensor", start, total)
                    rewriter.replace(instr, total)
                case (op, args):
                    rewriter.replace(instr, rewriter.insert(instr, op, *args))
                case str(reason):
                    ctx.missed(instr, reason)
        for instr in rewriter.program.find("aten.div.Tensor"):
            if (found := mean(instr) or softmax(instr)) is not None:
                op, args = found
                rewriter.replace(instr, rewriter.insert(instr, op, *args))
        return rewriter.finish()


def _raised(instr: Instr) -> Raised | str | None:
    """The gnnfx op for one ATen instruction, why there is none, or None if it is another op.

    A scatter comes with the value that it starts from in the place of its row count.
    """
    args = instr.args if instr.op.startswith("aten.") else {}
    match instr.op:
        case "aten.index_select.default":
            if is_param(instr.arg):
                return None
            if args["dim"] % len(instr.arg.shape) != 0:
                return f"selects along dimension {args['dim']}, not rows"
            return "gather", (instr.arg, args["index"])
        case "aten.index.Tensor":
            match args["indices"]:
                case [Instr() as index] if _is_index(index) and not is_param(instr.arg):
                    return "gather", (instr.arg, index)
        case "aten.scatter_add.default":
            return _scatter(instr, args["src"], "sum")
        case "aten.index_add.default":
            if args["alpha"] != 1:
                return f"index_add with alpha={args['alpha']}"
            return _scatter(instr, args["source"], "sum")
        case "aten.scatter_reduce.two":
            if args["include_self"] and args["reduce"] != "sum":
                return f"scatter_reduce {args['reduce']!r} includes the initial values"
            return _scatter(instr, args["src"], _REDUCES[args["reduce"]])
        case "aten.index_put.default":
            if args["accumulate"] and len(args["indices"]) == 1:
                return _scatter(instr, args["values"], "sum", index=args["indices"][0])
    return None


def _scatter(instr: Instr, messages: Any, reduce: str, index: Any = None) -> Raised | str:
    if instr.args.get("dim", 0) % max(len(instr.shape), 1) != 0:
        return f"reduces into dimension {instr.args['dim']}, not rows"
    if constant_value(instr.arg) != 0.0 and reduce != "sum":
        return f"{instr.arg} is not all zeros, so the reduction does not start from nothing"
    index = row_vector(index or instr.args["index"])
    if index is None:
        return "each channel has an index of its own"
    if not isinstance(messages, Instr) or messages.shape[:1] != index.shape:
        return "fewer messages are used than there are"
    if len(messages.shape) != len(instr.shape) or messages.shape[1:] != instr.shape[1:]:
        return "messages and rows differ in width"
    return "scatter", (messages, index, instr.arg, reduce)


def _rows(rewriter: Rewriter, instr: Instr, start: Instr) -> Any:
    """The row count of `start` [N, ...], from what depends least on features."""
    if isinstance(start.shape[0], int):
        return start.shape[0]
    if start.op in ("aten.zeros.default", "aten.new_zeros.default"):
        return start.args["size"][0]
    for value in rewriter.program.inputs:
        if start.shape[0] in value.shape:
            at = value.shape.index(start.shape[0])
            return rewriter.insert(instr, "aten.sym_size.int", value, at)
    return rewriter.insert(instr, "aten.sym_size.int", start, 0)


def _is_index(value: Instr) -> bool:
    return (
        len(value.shape) == 1
        and value.dtype is not None
        and not (value.dtype.is_floating_point or str(value.dtype) == "torch.bool")
    )
