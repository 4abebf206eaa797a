"""Reduce messages of an edge network, a matrix for each edge, without one of these matrices.

    m[e] = sum over k of edge[perm[e], k] * weight[:, k] @ x[src[e]]       e: an edge into node i
    y[i] = reduce of m[e]

then the epilogue of `gnnfx.kernels.epilogue`.  This is the last layer of the edge network of
Gilmer et al. (2017), "Neural Message Passing for Quantum Chemistry", section 5, PyG's NNConv.
Kernels sum edge[perm[e], k] * x[src[e]] over edges first, so that nodes are multiplied, not edges.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import reduce_rows
from gnnfx.kernels.csr import (
    check_csr,
    degrees,
    num_bytes,
    sample_graphs,
    sample_large_graph,
)
from gnnfx.kernels.epilogue import check_epilogue, finish
from gnnfx.kernels.launch import numba_impl, triton_impl

LINEAR_REDUCES = ("sum", "mean")


def reference(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    edge: Tensor,
    weight: Tensor,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `x` [S, C], `edge` [E, K] in the user's order, `weight` [O, K, C]: [N, O]."""
    matrices = torch.einsum("ek,okc->eoc", edge.index_select(0, perm), weight)
    messages = torch.einsum("eoc,ec->eo", matrices, x.index_select(0, src))
    total = reduce_rows(messages, rowptr, reduce)
    if reduce == "mean":
        total = total / degrees(rowptr)[:, None]
    return finish(total, None, None, None, bias, residual, activation)


def fake(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    edge: Tensor,
    weight: Tensor,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    check_csr(rowptr, src)
    check_csr(rowptr, perm)
    for name, given in (("x", x), ("edge", edge)):
        if given.dtype != torch.float32 or given.dim() != 2:
            got = f"{given.dtype} {tuple(given.shape)}"
            raise ValueError(f"{name} must be float32 of two axes, got {got}")
    want = (edge.shape[1], x.shape[1])
    if weight.dim() != 3 or tuple(weight.shape[1:]) != want:
        raise ValueError(f"weight must be [O, {want[0]}, {want[1]}], got {tuple(weight.shape)}")
    if edge.shape[0] != src.shape[0]:
        raise ValueError(f"edge must have {src.shape[0]} rows, got {edge.shape[0]}")
    if reduce not in LINEAR_REDUCES:
        raise ValueError(f"reduce must be one of {LINEAR_REDUCES}, got {reduce!r}")
    rows, outputs = rowptr.shape[0] - 1, weight.shape[0]
    check_epilogue(rows, outputs, None, bias, residual, activation)
    return x.new_empty((rows, outputs))


def cost(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    edge: Tensor,
    weight: Tensor,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Cost:
    """A multiply-add for each edge and product, and for each node and weight."""
    rows, outputs = rowptr.shape[0] - 1, weight.shape[0]
    flops = 2 * (src.shape[0] * weight[0].numel() + rows * weight.numel())
    gathered = src.shape[0] * x.shape[1] * x.element_size()
    read = num_bytes(rowptr, src, perm, edge, weight, bias, residual)
    return Cost(flops, gathered + read + 4 * rows * outputs, gathered)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(12)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    widths = [(5, 3, 7), (64, 6, 8), (16, 4, 40), (1, 1, 1), (40, 33, 5), (64, 9, 64), (3, 2, 2)]
    for i, (channels, features, outputs) in enumerate(widths * 2):
        rows, rowptr, src = graphs[(i + i // 7) % len(graphs)]
        perm = torch.randperm(len(src), generator=generator).to(device, rowptr.dtype)
        yield (
            *(rand(rows, channels), rowptr, src, perm, rand(len(src), features)),
            *(rand(outputs, features, channels), LINEAR_REDUCES[i % 2]),
            rand(outputs) if i % 3 else None,
            rand(len(rowptr) - 1, outputs) if i % 3 == 1 else None,
            "relu" if i % 4 == 2 else "none",
        )


AGGREGATE_EDGE_NETWORK = register(
    OpDef(
        "aggregate_edge_network",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_edge_network_numba", "aggregate_edge_network"),
            triton_impl("gnnfx.kernels.aggregate_edge_network_triton", "aggregate_edge_network"),
        ),
        differentiable=True,
    )
)
