"""Gradients of `aggregate`, in one sweep over the edges for each argument and none of E rows.

With y[i] = sum of w[e] * x[src[e]] over the edges e into node i, and g the gradient towards y:

    aggregate_transposed: towards x, sum of w[e] * g[i] over the edges e out of a node (SpMM with
        the transposed adjacency)
    edge_products: towards w, the product of g[i] and x[src[e]] (sampled dense-dense product)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import (
    check_csr,
    degrees,
    num_bytes,
    row_of_edge,
    sample_graphs,
    sample_large_graph,
)
from gnnfx.kernels.epilogue import activation_gradient
from gnnfx.kernels.launch import numba_impl, triton_impl


def transposed_reference(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> Tensor:
    """float32 `grad` [N, C] or [N, H, C], `weight` [E] or [E, H]: [S, C] or [S, H, C]."""
    messages = grad.index_select(0, row_of_edge(rowptr, src.shape[0]))
    if weight is not None:
        messages = messages * weight.view(*weight.shape, *(1,) * (grad.dim() - weight.dim()))
    return grad.new_zeros((num_src, *grad.shape[1:])).index_add(0, src, messages)


def transposed_fake(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> Tensor:
    check_csr(rowptr, src)
    return grad.new_empty((num_src, *grad.shape[1:]))


def transposed_cost(
    grad: Tensor, rowptr: Tensor, src: Tensor, num_src: int, weight: Tensor | None = None
) -> Cost:
    """Each edge adds to a row of the result, which it reads and writes."""
    channels, edges = grad.shape[1:].numel(), src.shape[0]
    gathered = 4 * edges * channels
    moved = 2 * gathered + num_bytes(grad, rowptr, src, weight) + 4 * num_src * channels
    return Cost(edges * channels * (1 if weight is None else 2), moved, gathered)


def products_reference(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> Tensor:
    """float32 `grad` [N, C] or [N, H, C] and `x` [S, ...]: [E], or [E, H] with `per_head`."""
    there = grad.index_select(0, row_of_edge(rowptr, src.shape[0]))
    products = there * x.index_select(0, src)
    return products.sum(-1) if per_head else products.flatten(1).sum(-1)


def products_fake(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> Tensor:
    check_csr(rowptr, src)
    return grad.new_empty((src.shape[0], grad.shape[1]) if per_head else (src.shape[0],))


def products_cost(
    grad: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, per_head: bool = False
) -> Cost:
    """Each edge reads a row of x and writes a number, or one for each head."""
    channels, edges = grad.shape[1:].numel(), src.shape[0]
    gathered = 4 * edges * channels
    written = 4 * edges * (grad.shape[1] if per_head else 1)
    return Cost(2 * edges * channels, gathered + num_bytes(grad, rowptr, src) + written, gathered)


def aggregate_gradient(
    grad: Tensor,
    result: Tensor | None,
    needed: Sequence[bool],
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor | None, ...] | None:
    """The gradients of a sum or mean; None for other reductions and towards scales of rows."""
    if reduce not in ("sum", "mean") or needed[5]:
        return None
    grad = activation_gradient(grad, result, activation)
    to_x = to_weight = to_self_weight = None
    num_rows = rowptr.shape[0] - 1
    if needed[0] or needed[3]:
        scaled = grad if row_scale is None else grad * row_scale[:, None]
        if reduce == "mean":
            scaled = scaled / degrees(rowptr).view(-1, *(1,) * (grad.dim() - 1))
        scaled = scaled.contiguous()
    if needed[0]:
        to_x = torch.ops.gnnfx.aggregate_transposed(scaled, rowptr, src, x.shape[0], weight)
        if self_weight is not None:
            to_x[:num_rows].addcmul_(grad, self_weight)
    if weight is not None and needed[3]:
        to_weight = torch.ops.gnnfx.edge_products(scaled, x, rowptr, src, weight.dim() == 2)
    if self_weight is not None and needed[6]:
        to_self_weight = (grad * x[:num_rows]).sum()
    to_bias = grad.sum(0) if needed[7] else None
    to_residual = grad if needed[8] else None
    return to_x, None, None, to_weight, None, None, to_self_weight, to_bias, to_residual, None


def _samples(device: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    """(gradient, x, rowptr, src, weight) for all graphs and forms of weights."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    widths = [(5,), (64,), (1,), (40,), (2, 8), (4, 5), (3, 32), (16,), (1, 7), (8, 8)]
    graphs = [*sample_graphs(device), sample_large_graph(device)]
    for i, shape in enumerate(widths * 3):
        rows, rowptr, src = graphs[(i + i // 10) % len(graphs)]
        edges, heads = src.shape[0], shape[:-1]
        weight = (rand(edges, *heads), None, rand(edges))[i % 3]
        yield rand(rowptr.shape[0] - 1, *shape), rand(rows, *shape), rowptr, src, weight


def transposed_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    for grad, x, rowptr, src, weight in _samples(device):
        yield grad, rowptr, src, x.shape[0], weight


def products_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    for grad, x, rowptr, src, weight in _samples(device):
        yield grad, x, rowptr, src, weight is not None and weight.dim() == 2


AGGREGATE_TRANSPOSED = register(
    OpDef(
        "aggregate_transposed",
        transposed_reference,
        transposed_fake,
        transposed_cost,
        transposed_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_gradient_numba", "aggregate_transposed"),
            triton_impl("gnnfx.kernels.aggregate_gradient_triton", "aggregate_transposed"),
        ),
    )
)
EDGE_PRODUCTS = register(
    OpDef(
        "edge_products",
        products_reference,
        products_fake,
        products_cost,
        products_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_gradient_numba", "edge_products"),
            triton_impl("gnnfx.kernels.aggregate_gradient_triton", "edge_products"),
        ),
    )
)
