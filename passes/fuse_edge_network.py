"""Multiply sums over edges where an edge network makes a matrix for each edge, as NNConv does.

    t: f32[E, 96] = aten.linear.default(h, w, b)           h: f32[E, K]
    j: f32[E, 1, 12] = aten.unsqueeze.default(gather(x, src), 1)
    m: f32[E, 1, 8] = aten.matmul.default(j, aten.view.default(t, [-1, 12, 8]))
    y: f32[N, 8] = scatter(aten.squeeze.dim(m, 1), dst, n, 'sum')
  becomes
    z: f32[N, 12] = scatter(gather(x, src), dst, n, 'sum')
    r: f32[N, 8] = aten.linear.default(z, c)               c: f32[8, 12] = b
    y: f32[N, 8] = aggregate_edge_network(x, rowptr, src_by_dst, perm, h, v, 'sum', None, r)

with v: f32[8, K, 12] = w, so that no matrix of an edge exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnnfx.ir.patterns import is_feature, is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.kernels.aggregate_edge_network import LINEAR_REDUCES
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.row_counts import RowCounts

_VIEWS = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")


@dataclass(frozen=True)
class _EdgeNetwork:
    """Messages x[src[e]] @ layer(e): the gathered rows, and the layer that makes the matrices."""

    rows: Instr
    layer: Instr


class FuseEdgeNetwork(Pass):
    """Replace scatters of products with a matrix of each edge by `aggregate_edge_network`."""

    name = "fuse-edge-network"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        counts = RowCounts(program, ctx)
        for scatter in rewriter.program.find("scatter"):
            messages, reduce = scatter.arg, scatter.args["reduce"]
            if reduce not in LINEAR_REDUCES or (found := _edge_network(messages)) is None:
                continue
            if counts.of(scatter) > counts.of(messages):
                ctx.missed(scatter, "nodes are more than edges, whose matrices are multiplied")
                continue
            layer, patterns = found.layer.module, ctx.policy.patterns_of
            if not set(patterns(layer)) <= set(patterns(scatter.module)):
                ctx.missed(scatter, f"the policy names {layer}, which makes its matrices")
                continue
            rewriter.replace(scatter, _fused(rewriter, scatter, found))
            ctx.did(scatter, "multiplies sums over edges, and makes no matrix of an edge")
        return rewriter.finish()


def _edge_network(messages: Instr) -> _EdgeNetwork | None:
    """What `messages` [E, O] are the products of, or None."""
    if messages.op != "aten.squeeze.dim" or messages.args["dim"] not in (1, -2):
        return None
    product = messages.arg
    if product.op not in _PRODUCTS or product.dtype is not torch.float32:
        return None
    vectors, matrices = product.positional
    if matrices.op not in _VIEWS or vectors.op != "aten.unsqueeze.default":
        return None
    rows, layer = vectors.arg, matrices.arg
    chain = (messages, product, matrices, layer)
    if rows.op != "gather" or not is_feature(rows.arg) or vectors.args["dim"] not in (1, -2):
        return None
    if any(sole_user(value) is None for value in chain) or len(layer.shape) != 2:
        return None
    params = [layer.args.get("weight"), layer.args.get("bias")]
    if layer.op != "aten.linear.default" or not is_param(params[0]):
        return None
    return _EdgeNetwork(rows, layer) if params[1] is None or is_param(params[1]) else None


def _fused(rewriter: Rewriter, scatter: Instr, found: _EdgeNetwork) -> Instr:
    _, dst, num_rows, reduce = scatter.args.values()
    weight, bias = found.layer.args["weight"], found.layer.args["bias"]
    # The layer's outputs are a matrix [C, O] row by row.
    channels = int(found.rows.shape[1])

    def param(name: str, tensor: Tensor) -> Instr:
        return rewriter.param(found.layer, name, tensor.contiguous())

    residual = None
    if bias is not None:
        same = param(f"{bias.param}.matrix", rewriter.program.tensor(bias).view(channels, -1).t())
        sums = rewriter.insert(scatter, "scatter", found.rows, dst, num_rows, reduce)
        residual = rewriter.insert(scatter, "aten.linear.default", sums, same, like=found.layer)
    csr = rewriter.insert(scatter, "compress", found.rows.args["index"], dst, num_rows)
    parts = [rewriter.insert(scatter, "getitem", csr, i) for i in range(3)]
    features = int(found.layer.arg.shape[1])
    matrices = rewriter.program.tensor(weight).view(channels, -1, features).permute(1, 2, 0)
    by_feature = param(f"{weight.param}.by_feature", matrices)
    args = found.layer.arg, by_feature, reduce, None, residual
    return rewriter.insert(scatter, "aggregate_edge_network", found.rows.arg, *parts, *args)
