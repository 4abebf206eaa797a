"""Fuse scores, softmax and weighted sum of a destination into one pass over its edges.

    s: f32[E, 4] = gather(a_src, src)
    d: f32[E, 4] = gather(a_dst, dst)
    l: f32[E, 4] = aten.leaky_relu.default(s + d, 0.2)
    w: f32[E, 4] = segment_softmax(l, rowptr)
    y: f32[N, 4, 8] = aggregate(x, rowptr, src, w)
    z: f32[N, 32] = aten.view.default(y, [-1, 32])
  becomes
    z: f32[N, 32] = attend_gat(x, a_src, a_dst, rowptr, src, None, 0.2)

and, where the score is att . leaky_relu(x_src[src] + x_dst[dst] [+ edge]), attend_gatv2; where it
is query[dst] . key[src] (see `attention_scores`), attend_dot.  A mean over heads is part of the op,
and so is a linear layer of a few features of edges, whose rows need not exist for all edges.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import RESHAPES, is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.attention_scores import Frame, Scores, match_scores, unsorted_frame
from gnnfx.passes.fuse_messages import edge_features

# Places of the arguments that have an axis of heads.
_HEADED = {"attend_gat": (0, 1, 2), "attend_gatv2": (0, 1, 2, 5), "attend_dot": (0, 1, 2, 5)}

# So many are multiplied in less time than their products are written and read again.
_MOST_FEATURES = 32


class FuseAttention(Pass):
    """Replace softmax-weighted aggregates by one attention op, so that nothing is [E, H, C]."""

    name = "fuse-attention"
    needs = frozenset({"csr"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for aggregate in rewriter.program.find("aggregate"):
            weight = aggregate.args["weight"]
            if weight is not None and weight.op == "segment_softmax":
                match match_attention(aggregate, weight.arg, rewriter.program):
                    case (op, args):
                        _replace(rewriter, aggregate, op, list(args))
                    case str(reason):
                        ctx.missed(aggregate, reason)
            elif (frame := unsorted_frame(aggregate)) is not None:
                match match_scores(frame, rewriter.program):
                    case ("attend_dot", (query, key, value, _, _, edge, *_, scale)):
                        rowptr, src, perm = _by_destination(rewriter, aggregate, frame)
                        given = [query, key, value, rowptr, src, edge, perm, None, None, scale]
                        _replace(rewriter, aggregate, "attend_dot", given)
                    case str(reason):
                        ctx.missed(aggregate, reason)
        return rewriter.finish()


def match_attention(aggregate: Instr, logits: Instr, program: Program) -> Scores | str:
    """The attention op and arguments that a softmax-weighted `aggregate` is, or why it is none."""
    args = aggregate.args
    if args["reduce"] != "sum" or len(aggregate.shape) - len(logits.shape) != 1:
        return "attention weights are used for something else than a sum per head"
    taken = [k for k in ("row_scale", "self_weight", "bias", "residual") if args[k] is not None]
    if taken or args["activation"] != "none":
        return f"the sum is finished with {', '.join(taken) or args['activation']} already"
    frame = Frame(logits, args["x"], None, args["src"], args["rowptr"])
    return match_scores(frame, program)


def _by_destination(rewriter: Rewriter, before: Instr, frame: Frame) -> list[Instr]:
    """rowptr, src and perm of edges that are not sorted yet."""
    csr = rewriter.insert(before, "compress", frame.src, frame.dst, frame.num_rows)
    return [rewriter.insert(before, "getitem", csr, i) for i in range(3)]


def _replace(rewriter: Rewriter, aggregate: Instr, op: str, args: list[Any]) -> None:
    """Put the attention op in place of the aggregate and of what joins or averages its heads."""
    if op == "attend_gat" and args[2] is None:
        rows = aggregate.args["rowptr"].arg.args["num_dst"]
        args[2] = rewriter.insert(
            aggregate, "aten.new_zeros.default", args[1], [rows, *args[1].shape[1:]]
        )
    last, mean = _joined(aggregate)
    single = len(aggregate.shape) == 2
    headed = _HEADED[op]
    if op != "attend_gat" and (features := _features(args[5])) is not None:
        args[5], args[7], args[8] = features
        headed = headed[:-1]
    for place in headed:
        value = args[place]
        if value is not None and (single or is_param(value)):
            args[place] = _with_heads(rewriter, aggregate, value, op == "attend_gat" and place > 0)
    rows = rewriter.insert(last, op, *args, mean_heads=mean or None, like=aggregate)
    if last is aggregate and not single:
        size = [-1, *aggregate.shape[1:]]
        rows = rewriter.insert(last, "aten.view.default", rows, size, like=aggregate)
    rewriter.replace(last, rows)


def _features(edge: Instr | None) -> tuple[Any, Any, Any] | None:
    """(features, weight, bias) that make rows of edges, if that is faster than to read the rows."""
    if edge is None:
        return None
    layer = edge.arg if edge.op in RESHAPES else edge
    features, weight, bias = edge_features(layer)
    if weight is None or layer.shape[0] != edge.shape[0] or weight.shape[1] > _MOST_FEATURES:
        return None
    return features, weight, bias


def _with_heads(rewriter: Rewriter, before: Instr, value: Instr, is_score: bool) -> Instr:
    """Rows or scores of a single head with an axis for it; a parameter [1, H, C] without its 1."""
    if is_param(value):
        size = list(value.shape[-2:]) if len(value.shape) > 1 else [1, *value.shape]
    else:
        size = [-1, 1] if is_score else [-1, 1, value.shape[-1]]
    return rewriter.insert(before, "aten.view.default", value, size)


def _joined(aggregate: Instr) -> tuple[Instr, bool]:
    """The instruction that makes [N, H * C] or the mean [N, C] of the heads, and whether it is one.

    The aggregate itself if its heads are read as they are.
    """
    user = sole_user(aggregate)
    if user is None or len(aggregate.shape) == 2:
        return aggregate, False
    rows, heads, channels = aggregate.shape
    if user.op in RESHAPES and user.shape == (rows, _product(heads, channels)):
        return user, False
    if user.op == "aten.mean.dim" and user.args["dim"] in ([1], [-2]):
        plain = not user.args["keepdim"] and user.dtype == aggregate.dtype
        return (user, True) if plain else (aggregate, False)
    return aggregate, False


def _product(heads: Any, channels: Any) -> Any:
    return heads * channels if isinstance(heads, int) and isinstance(channels, int) else None
