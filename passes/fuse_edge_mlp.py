"""Run a linear layer on messages in tiles, between the sum that makes them and their reduction.

    h: f32[E, 8] = aten.relu.default(gather(x, src) + gather(p, dst))
    m: f32[E, 4] = aten.linear.default(h, w, b)
    y: f32[N, 4] = aggregate(m, rowptr, perm, None, 'max')
  becomes
    y: f32[N, 4] = aggregate_edge_mlp(x, rowptr, src_by_dst, perm, w, b, p, None, 'relu', ...)

and its quantized form where h is quantized and m a `quantized_linear`.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.fuse_messages import EdgeSum, edge_sum

_LINEAR = ("aten.linear.default", "quantized_linear")
_MAKES_CODES = ("observe", "fake_quantize", "quantize")


class FuseEdgeMlp(Pass):
    """Replace aggregates of linear layers on sums of gathered rows by `aggregate_edge_mlp`."""

    name = "fuse-edge-mlp"
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for aggregate in rewriter.program.find("aggregate"):
            if (found := edge_mlp(aggregate)) is not None:
                rewriter.replace(aggregate, _fused(rewriter, aggregate, found))
                ctx.did(aggregate, "makes its messages, and their linear layer, in tiles of edges")
        return rewriter.finish()


def edge_mlp(aggregate: Instr) -> EdgeSum | None:
    """The sum that the linear layer under an `aggregate` of messages reads, or None."""
    args, linear = aggregate.args, aggregate.arg
    if linear.op not in _LINEAR or len(linear.users) > 1 or len(linear.shape) != 2:
        return None
    if any(args[k] is not None for k in ("weight", "row_scale", "self_weight")):
        return None
    csr = args["rowptr"].arg
    perm = args["src"]
    if csr.op != "compress" or perm.op != "getitem" or perm.positional != [csr, 2]:
        return None
    if not _is_bare(linear):
        return None
    hidden = linear.arg
    if hidden.op in _MAKES_CODES:
        if len(hidden.users) > 1 or hidden.args["bits"] != 8 or hidden.args.get("row_scale"):
            return None
        hidden = hidden.arg
    found = edge_sum(hidden, csr.args["dst"]) if len(hidden.users) == 1 else None
    return found if isinstance(found, EdgeSum) and found.offset == 0 else None


def _is_bare(linear: Instr) -> bool:
    """Whether a layer does nothing but multiply and add its bias."""
    if linear.op == "aten.linear.default":
        return is_param(linear.args["weight"]) or linear.args["weight"].op == "dequantize_weight"
    args = linear.args
    extras = all(args[k] is None for k in ("residual", "out_scale", "row_scale"))
    return extras and args["activation"] == "none"


def _fused(rewriter: Rewriter, aggregate: Instr, found: EdgeSum) -> Instr:
    args, linear = aggregate.args, aggregate.arg.args

    def insert(op: str, *operands: Any) -> Instr:
        return rewriter.insert(aggregate, op, *operands)

    old = args["rowptr"].arg.args
    csr = insert("compress", found.src, old["dst"], old["num_dst"])
    rowptr, src, perm = (insert("getitem", csr, i) for i in range(3))
    message = (found.x_dst, found.edge, found.activation, found.slope, args["reduce"])
    rest = (*message, args["bias"], args["residual"], args["activation"])
    operands = (found.x, rowptr, src, perm)
    if aggregate.arg.op == "aten.linear.default":
        layer = (linear["weight"], linear["bias"])
        return insert("aggregate_edge_mlp", *operands, *layer, *rest)
    codes = (linear["scale"], linear["zero_point"], linear["weight"], linear["weight_scale"])
    bits = linear["weight_bits"]
    return insert("quantized_aggregate_edge_mlp", *operands, *codes, linear["bias"], *rest, bits)
