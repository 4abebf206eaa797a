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

_REDUCES = {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min", "prod": "mul"}
_SOFTMAX_EPS = 1e-16


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
                case ("scatter", (messages, index, str(), reduce)):
                    like = instr.arg.arg if instr.arg.op.endswith("_like.default") else instr.arg
                    rows = rewriter.insert(instr, "aten.sym_size.int", like, 0)
                    args = (messages, index, rows, reduce)
                    rewriter.replace(instr, rewriter.insert(instr, "scatter", *args))
                case (op, args):
                    rewriter.replace(instr, rewriter.insert(instr, op, *args))
                case str(reason):
                    ctx.missed(instr, reason)
        for instr in rewriter.program.find("aten.div.Tensor"):
            if (found := _mean(instr) or _softmax(instr)) is not None:
                op, args = found
                rewriter.replace(instr, rewriter.insert(instr, op, *args))
        return rewriter.finish()


Raised = tuple[str, tuple[Any, ...]]


def _raised(instr: Instr) -> Raised | str | None:
    """The gnnfx op for one ATen instruction, why there is none, or None if it is another op."""
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
    if constant_value(instr.arg) != 0.0:
        return f"{instr.arg} is not all zeros, so the reduction does not start from nothing"
    index = row_vector(index or instr.args["index"])
    if index is None:
        return "each channel has an index of its own"
    if not isinstance(messages, Instr) or messages.shape[:1] != index.shape:
        return "fewer messages are used than there are"
    if len(messages.shape) != len(instr.shape) or messages.shape[1:] != instr.shape[1:]:
        return "messages and rows differ in width"
    return "scatter", (messages, index, _rows(instr.arg), reduce)


def _rows(zeros: Instr) -> Any:
    """The row count of an all-zero tensor, as the program computes it; a name if it does not."""
    size = zeros.args.get("size")
    return size[0] if isinstance(size, list) else zeros.shape[0]


def _is_index(value: Instr) -> bool:
    return (
        len(value.shape) == 1
        and value.dtype is not None
        and not (value.dtype.is_floating_point or str(value.dtype) == "torch.bool")
    )


def _mean(div: Instr) -> Raised | None:
    """scatter(m, i, n, sum) / clamp(scatter(1, i, n, sum), 1)."""
    total, count = div.args["self"], row_vector(div.args["other"])
    if not isinstance(total, Instr) or total.op != "scatter" or count is None:
        return None
    clamps = count.op in ("aten.clamp.default", "aten.clamp_min.default")
    if not clamps or count.args["min"] != 1 or count.args.get("max") is not None:
        return None
    count = count.arg
    if count.op != "scatter" or constant_value(count.arg) != 1.0:
        return None
    same = all(total.args[k] == count.args[k] for k in ("index", "num_rows", "reduce"))
    if not same or total.args["reduce"] != "sum":
        return None
    return "scatter", (total.arg, total.args["index"], total.args["num_rows"], "mean")


def _softmax(div: Instr) -> Raised | None:
    """exp(l - max) / (sum of the same + 1e-16), maximum and sum over the edges of a node."""
    weights, total = div.args["self"], div.args["other"]
    if not _is(weights, "aten.exp.default") or not _is(total, "gather"):
        return None
    index, total = total.args["index"], total.arg
    if not _is(total, "aten.add.Tensor") or total.args["other"] != _SOFTMAX_EPS:
        return None
    total, shifted = total.arg, weights.arg
    if not _is(total, "scatter") or total.arg != weights or total.args["index"] != index:
        return None
    if not _is(shifted, "aten.sub.Tensor") or not _is(shifted.args["other"], "gather"):
        return None
    logits, highest = shifted.arg, shifted.args["other"]
    if highest.args["index"] != index or not _is(highest.arg, "scatter"):
        return None
    highest = highest.arg
    if highest.args["reduce"] != "max" or total.args["reduce"] != "sum":
        return None
    # The maximum drops out of the quotient, so that its gradient does not matter.
    shifted_by = highest.arg.arg if _is(highest.arg, "aten.detach.default") else highest.arg
    if shifted_by != logits or highest.args["index"] != index:
        return None
    return "edge_softmax", (logits, index, total.args["num_rows"])


def _is(value: Any, op: str) -> bool:
    return isinstance(value, Instr) and value.op == op
