"""The layers of the ten models in DGL, each made from a PyG layer and its weights.

A layer is called with DGL's graph and features [N, F].  DGL's PNAConv and EdgeConv compute
something else than PyG's and TransformerConv is not there; these are written with DGL's built-in
messages and reductions the way its guide advises: linear layers over pairs of nodes are split, so
that rows of nodes are multiplied and not those of edges.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from models import AGGREGATORS
from torch import Tensor, nn

Layer = Callable[[Any, Tensor], Tensor]


def _gcn(library: Any, conv: Any) -> Layer:
    """DGL's own norm divides by out-degrees, so rows are scaled before and after a plain sum."""
    rows, columns = conv.lin.weight.shape
    gcn = library.nn.pytorch.GraphConv(columns, rows, norm="none", bias=False)
    gcn.weight = nn.Parameter(conv.lin.weight.t().contiguous())

    def layer(graph: Any, x: Tensor) -> Tensor:
        scale = graph.ndata["scale"]
        out: Tensor = (gcn(graph, x * scale) * scale).add_(conv.bias)
        return out

    return layer


def _sage(library: Any, conv: Any) -> Layer:
    rows, columns = conv.lin_l.weight.shape
    sage: Layer = library.nn.pytorch.SAGEConv(columns, rows, "mean")
    _set(sage.fc_neigh, conv.lin_l.weight, None)  # type: ignore[attr-defined]
    _set(sage.fc_self, conv.lin_r.weight, conv.lin_l.bias)  # type: ignore[attr-defined]
    return sage


def _gin(library: Any, conv: Any) -> Layer:
    gin: Layer = library.nn.pytorch.GINConv(conv.nn, "sum", init_eps=float(conv.eps))
    return gin


def _gat(library: Any, conv: Any) -> Layer:
    columns = conv.lin.weight.shape[1]
    gat = library.nn.pytorch.GATConv(columns, conv.out_channels, conv.heads, bias=False).eval()
    _set(gat.fc, conv.lin.weight, None)
    gat.attn_l, gat.attn_r = conv.att_src, conv.att_dst
    return lambda graph, x: _join(gat(graph, x), conv).add_(conv.bias)


def _gatv2(library: Any, conv: Any) -> Layer:
    columns = conv.lin_l.weight.shape[1]
    gat = library.nn.pytorch.GATv2Conv(columns, conv.out_channels, conv.heads).eval()
    _set(gat.fc_src, conv.lin_l.weight, conv.lin_l.bias)
    _set(gat.fc_dst, conv.lin_r.weight, conv.lin_r.bias)
    gat.attn = conv.att
    return lambda graph, x: _join(gat(graph, x), conv).add_(conv.bias)


def _transformer(library: Any, conv: Any) -> Layer:
    fn, heads, channels = library.function, conv.heads, conv.out_channels
    softmax = importlib.import_module("dgl.ops").edge_softmax

    def layer(graph: Any, x: Tensor) -> Tensor:
        with graph.local_scope():
            graph.dstdata["q"] = conv.lin_query(x).view(-1, heads, channels) / math.sqrt(channels)
            graph.srcdata["k"] = conv.lin_key(x).view(-1, heads, channels)
            graph.srcdata["v"] = conv.lin_value(x).view(-1, heads, channels)
            graph.apply_edges(fn.v_dot_u("q", "k", "a"))
            graph.edata["a"] = softmax(graph, graph.edata.pop("a"))
            graph.update_all(fn.u_mul_e("v", "a", "m"), fn.sum("m", "out"))
            return _join(graph.dstdata["out"], conv).add_(conv.lin_skip(x))

    return layer


def _pna(library: Any, conv: Any) -> Layer:
    fn = library.function
    (pre,), post = conv.pre_nns[0], conv.post_nns[0]
    own, other = pre.weight.chunk(2, dim=1)
    average = float(conv.aggr_module.avg_deg_log)

    def layer(graph: Any, x: Tensor) -> Tensor:
        with graph.local_scope():
            graph.dstdata["own"] = F.linear(x, own, pre.bias)
            graph.srcdata["other"] = F.linear(x, other)
            graph.apply_edges(fn.v_add_u("own", "other", "m"))
            found = {}
            for name, reduce in (("mean", fn.mean), ("min", fn.min), ("max", fn.max)):
                graph.update_all(fn.copy_e("m", "c"), reduce("c", "r"))
                found[name] = graph.dstdata.pop("r")
            graph.edata["m"] = graph.edata["m"].square_()
            graph.update_all(fn.copy_e("m", "c"), fn.mean("c", "r"))
            variance = graph.dstdata.pop("r") - found["mean"].square()
            std = variance.clamp_(min=1e-5).sqrt_()
            found["std"] = std.masked_fill_(std <= math.sqrt(1e-5), 0.0)
            out = torch.cat([found[name] for name in AGGREGATORS], dim=1)
            logs = (graph.ndata["degree"] + 1).log_()
            least = logs.clamp(min=math.log(2))
            scaled = [x, out, out * (logs / average), out * (average / least)]
            result: Tensor = conv.lin(post(torch.cat(scaled, dim=1)))
            return result

    return layer


def _rgcn(library: Any, conv: Any) -> Layer:
    relations, columns, rows = conv.weight.shape
    rgcn = library.nn.pytorch.RelGraphConv(columns, rows, relations)
    rgcn.linear_r.W = conv.weight
    rgcn.loop_weight, rgcn.h_bias = conv.root, conv.bias
    return lambda graph, x: rgcn(graph, x, graph.edata["type"], graph.edata["norm"], presorted=True)


def _edgeconv(library: Any, conv: Any) -> Layer:
    fn = library.function
    first, last = conv.nn.lins
    own, difference = first.weight.chunk(2, dim=1)

    def layer(graph: Any, x: Tensor) -> Tensor:
        with graph.local_scope():
            graph.dstdata["own"] = F.linear(x, own - difference, first.bias)
            graph.srcdata["other"] = F.linear(x, difference)
            graph.apply_edges(fn.v_add_u("own", "other", "m"))
            graph.edata["m"] = last(graph.edata["m"].relu_())
            graph.update_all(fn.copy_e("m", "c"), fn.max("c", "out"))
            out: Tensor = graph.dstdata["out"]
            return out

    return layer


def _gine(library: Any, conv: Any) -> Layer:
    gine = library.nn.pytorch.GINEConv(conv.nn, init_eps=float(conv.eps))
    return lambda graph, x: gine(graph, x, conv.lin(graph.edata["attr"]))


def _join(heads: Tensor, conv: Any) -> Tensor:
    """[N, H, C] side by side, or their mean."""
    return heads.flatten(1) if conv.concat else heads.mean(dim=1)


def _set(linear: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
    linear.weight = weight
    if linear.bias is not None or bias is not None:
        linear.bias = bias  # type: ignore[assignment]


LAYERS: dict[str, Callable[[Any, Any], Layer]] = {
    "gcn": _gcn,
    "sage": _sage,
    "gin": _gin,
    "gat": _gat,
    "gatv2": _gatv2,
    "transformer": _transformer,
    "pna": _pna,
    "rgcn": _rgcn,
    "edgeconv": _edgeconv,
    "gine": _gine,
}
