"""The ways to run one model that are compared: PyTorch Geometric's, DGL's, by hand, gnnfx's.

A peer is made of two functions.  `prepare(edge_index)` turns an edge list into what the peer
computes on; `call(graph)` is one forward pass.  On a warm graph only `call` is timed, on a new
graph both.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import Workload

import gnnfx

EXACT_TOLERANCE = 1e-4
"""Largest difference from eager, relative to the largest output, for peers that claim float32."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run the model; `exact` if it claims eager's float32 answer."""

    name: str
    note: str
    prepare: Callable[[Tensor], Any]
    call: Callable[[Any], Tensor]
    exact: bool = True
    extra: dict[str, object] | None = None


class Unavailable(Exception):
    """This peer cannot run this workload here; the text says why."""


def _as_is(edge_index: Tensor) -> Tensor:
    return edge_index


def eager(work: Workload) -> Peer:
    """PyTorch Geometric as everyone runs it."""
    return Peer("eager", "PyG on edge_index", _as_is, lambda graph: work.model(work.x, graph))


def compiled(work: Workload) -> Peer:
    """The same model under torch.compile."""
    torch._dynamo.reset()
    model: Any = torch.compile(copy.deepcopy(work.model), dynamic=True)
    return Peer(
        "compile",
        "torch.compile(dynamic=True) of PyG",
        _as_is,
        lambda graph: model(work.x, graph),
    )


def csr(work: Workload) -> Peer:
    """PyG on torch's sparse CSR adjacency, one row per destination; duplicates are merged."""
    return Peer(
        "csr",
        "PyG on a torch sparse CSR adjacency",
        lambda edge_index: _adjacency(edge_index, len(work.x)),
        lambda graph: work.model(work.x, graph),
    )


def csr_cached(work: Workload) -> Peer:
    """The same with GCNConv's `cached=True`, emptied for a new graph."""
    if work.model_name != "gcn":
        raise Unavailable("only GCNConv has cached=True")
    model: Any = copy.deepcopy(work.model)
    for conv in model.convs:
        conv.cached = True

    def prepare(edge_index: Tensor) -> Tensor:
        for conv in model.convs:
            conv._cached_adj_t = conv._cached_edge_index = None
        return _adjacency(edge_index, len(work.x))

    return Peer(
        "csr-cached",
        "PyG on a torch sparse CSR adjacency, cached=True",
        prepare,
        lambda graph: model(work.x, graph),
    )


def _adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    values = torch.ones(edge_index.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that sparse CSR is in beta
        return torch.sparse_coo_tensor(edge_index.flip(0), values, (nodes, nodes)).to_sparse_csr()


def by_hand(work: Workload) -> Peer:
    """GCN as an expert writes it: torch.sparse matrix with precomputed norm, narrower side first.

    The CSR arrays are built directly, so duplicate edges count as often as in eager.
    """
    if work.model_name != "gcn":
        raise Unavailable("written for GCN only")
    nodes = len(work.x)
    layers = [(conv.lin.weight, conv.bias) for conv in work.model.convs]

    def prepare(edge_index: Tensor) -> Tensor:
        src, dst = _one_loop_per_node(edge_index, nodes)
        order = dst.argsort(stable=True)
        degree = torch.bincount(dst, minlength=nodes)
        rowptr = F.pad(degree.cumsum(0), (1, 0))
        scale = degree.float().rsqrt()
        values = (scale[src] * scale[dst])[order]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that sparse CSR is in beta
            return torch.sparse_csr_tensor(rowptr, src[order], values, (nodes, nodes))

    def call(graph: Tensor) -> Tensor:
        h = work.x
        for index, (weight, bias) in enumerate(layers):
            if weight.shape[1] <= weight.shape[0]:
                h = F.linear(graph @ h, weight, bias)
            else:
                h = graph @ F.linear(h, weight) + bias
            if index + 1 < len(layers):
                h = h.relu_()
        return h

    return Peer("torch.sparse", "by hand: torch.sparse, norm precomputed", prepare, call)


def _one_loop_per_node(edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    kept = edge_index[:, edge_index[0] != edge_index[1]]
    loops = torch.arange(nodes)
    return torch.cat([kept[0], loops]), torch.cat([kept[1], loops])


def dgl(work: Workload) -> Peer:
    """DGL with the same weights.

    DGL 2.1 is the last release on the package index and predates this torch: its C++ sampling
    library does not load, so an empty `dgl.graphbolt` stands in for it; the CPU kernels work.  GCN
    scales rows before and after an unweighted sum, because DGL's own norm divides by out-degrees.
    """
    library = _import_dgl()
    layers = [_dgl_layer(work.model_name, conv) for conv in work.model.convs]
    act = work.model.act
    nodes = len(work.x)
    loops = work.model_name in ("gcn", "gat")

    def prepare(edge_index: Tensor) -> Any:
        pair = _one_loop_per_node(edge_index, nodes) if loops else tuple(edge_index)
        graph = library.graph(pair, num_nodes=nodes)
        graph.ndata["scale"] = graph.in_degrees().float().rsqrt()[:, None]
        graph.create_formats_()
        return graph

    def call(graph: Any) -> Tensor:
        h = work.x
        for index, layer in enumerate(layers):
            h = layer(graph, h)
            if index + 1 < len(layers):
                h = act(h)
        return h

    return Peer("dgl", f"DGL {library.__version__}, same weights", prepare, call)


def _import_dgl() -> Any:
    os.environ.setdefault("DGLBACKEND", "pytorch")
    sys.modules.setdefault("dgl.graphbolt", types.ModuleType("dgl.graphbolt"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("dgl")
    except Exception as error:  # DGL fails in many ways beside a torch it was not built for
        raise Unavailable(f"DGL does not import: {type(error).__name__}: {error}") from error


def _dgl_layer(kind: str, conv: Any) -> Callable[[Any, Tensor], Tensor]:
    layers = importlib.import_module("dgl.nn.pytorch")
    if kind == "gcn":
        rows, columns = conv.lin.weight.shape
        gcn = layers.GraphConv(columns, rows, norm="none", bias=False)
        gcn.weight = nn.Parameter(conv.lin.weight.t().contiguous())

        def scaled(graph: Any, x: Tensor) -> Tensor:
            scale = graph.ndata["scale"]
            out: Tensor = gcn(graph, x * scale) * scale + conv.bias
            return out

        return scaled
    if kind == "sage":
        rows, columns = conv.lin_l.weight.shape
        sage = layers.SAGEConv(columns, rows, "mean")
        _set(sage.fc_neigh, conv.lin_l.weight, None)
        _set(sage.fc_self, conv.lin_r.weight, conv.lin_l.bias)
        return sage  # type: ignore[no-any-return]
    if kind == "gin":
        gin = layers.GINConv(conv.nn, "sum", init_eps=float(conv.eps))
        return gin  # type: ignore[no-any-return]
    gat = layers.GATConv(conv.lin.weight.shape[1], conv.out_channels, conv.heads, bias=False)
    gat.eval()
    _set(gat.fc, conv.lin.weight, None)
    gat.attn_l, gat.attn_r = conv.att_src, conv.att_dst
    concat: bool = conv.concat
    bias: Tensor = conv.bias

    def attend(graph: Any, x: Tensor) -> Tensor:
        heads: Tensor = gat(graph, x)  # [N, heads, C]
        return (heads.flatten(1) if concat else heads.mean(dim=1)) + bias

    return attend


def _set(linear: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
    linear.weight = weight
    if linear.bias is not None or bias is not None:
        linear.bias = bias  # type: ignore[assignment]


def optimized(policy: str) -> Callable[[Workload], Peer]:
    """gnnfx under `policy`, calibrated on the workload's own graph."""

    def make(work: Workload) -> Peer:
        arguments = (work.x, work.edge_index)
        module = gnnfx.optimize(work.model, policy, arguments, calibration=[arguments])
        return Peer(
            f"gnnfx-{policy}",
            f"gnnfx.optimize, policy {policy}",
            _as_is,
            lambda graph: module(work.x, graph),
            exact=policy == "fp32",
            extra={"report": module.report.to_dict()},
        )

    return make


PEERS: dict[str, Callable[[Workload], Peer]] = {
    "eager": eager,
    "compile": compiled,
    "csr": csr,
    "csr-cached": csr_cached,
    "torch.sparse": by_hand,
    "dgl": dgl,
    "gnnfx-fp32": optimized("fp32"),
    "gnnfx-int8": optimized("int8"),
    "gnnfx-int4": optimized("int4"),
}
