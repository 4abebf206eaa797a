"""Attention over incoming edges: score, softmax and weighted sum in one pass a destination.

GAT (Velickovic et al., ICLR 2018, eq. 3):  score = leaky_relu(a_src[src] + a_dst[dst])
GATv2 (Brody et al., ICLR 2022, eq. 7):     score = att . leaky_relu(x_src[src] + x_dst[dst])

    y[i] = sum over edges of softmax(score) * x[src]       per head

Features are float32 or int8 codes; scores, softmax and sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import edge_rows, reduce_rows, sample_graphs
from gnnfx.kernels.launch import numba_impl
from gnnfx.kernels.softmax import reference as segment_softmax


def _heads(name: str, x: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"{name} must be [R, H, C], got {tuple(x.shape)}")


def _int8(name: str, x: Tensor) -> None:
    if x.dtype != torch.int8:
        raise ValueError(f"{name} must be int8 codes, got {x.dtype}")


def _floats(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return (codes.int() - zero_point).float() * scale


# attend_gat


def attend_gat_reference(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    """Rows [N, H, C] from x [S, H, C], a_src [S, H], a_dst [N, H] and a_edge [E, H]."""
    logits = a_src.index_select(0, src) + a_dst.index_select(0, edge_rows(rowptr))
    if a_edge is not None:
        logits = logits + a_edge
    alpha = segment_softmax(leaky_relu(logits, negative_slope), rowptr)
    return reduce_rows(alpha[:, :, None] * x.index_select(0, src), rowptr, "sum")


def attend_gat_fake(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    _heads("x", x)
    for name, scores in (("a_src", a_src), ("a_dst", a_dst)):
        if scores.dim() != 2 or scores.shape[1] != x.shape[1]:
            raise ValueError(f"{name} must be [R, {x.shape[1]}], got {tuple(scores.shape)}")
    return x.new_empty((rowptr.shape[0] - 1, *x.shape[1:]), dtype=torch.float32)


def attend_gat_cost(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Cost:
    """A multiply-add an edge and channel, about eight operations an edge and head."""
    edges, rows, heads, width = src.numel(), rowptr.shape[0] - 1, x.shape[1], x.shape[2]
    read = edges * heads * (width * x.element_size() + a_src.element_size())
    inputs = (a_dst, rowptr, src, a_edge)
    read += sum(t.nbytes for t in inputs if t is not None)
    return Cost(edges * heads * (2 * width + 8), read + 4 * rows * heads * width)


def attend_gat_samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    for nodes, graph, heads, width, rand in _sample_shapes(device):
        x, a_src, a_dst = rand(nodes, heads, width), rand(nodes, heads), rand(nodes, heads)
        yield x, a_src, a_dst, *graph
        yield x, a_src, a_dst, *graph, rand(graph[1].numel(), heads), 0.01


# quantized_attend_gat


def quantized_attend_gat_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    """`attend_gat` on int8 codes x [S, H, C]."""
    values = _floats(x, scale, zero_point)
    return attend_gat_reference(values, a_src, a_dst, rowptr, src, a_edge, negative_slope)


def quantized_attend_gat_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    _int8("x", x)
    return attend_gat_fake(x, a_src, a_dst, rowptr, src, a_edge, negative_slope)


def quantized_attend_gat_cost(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Cost:
    return attend_gat_cost(x, a_src, a_dst, rowptr, src, a_edge, negative_slope)


def quantized_attend_gat_samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    for x, *rest in attend_gat_samples(device):
        yield _codes(x), *_qparams(device, 3), *rest
        yield _codes(x), *_qparams(device, -128), *rest


# attend_gatv2


def attend_gatv2_reference(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    """Rows [N, H, C] from x_src [S, H, C], x_dst [N, H, C] and att [H, C] or [1, H, C]."""
    messages = x_src.index_select(0, src)
    hidden = leaky_relu(messages + x_dst.index_select(0, edge_rows(rowptr)), negative_slope)
    alpha = segment_softmax((hidden * att.view(1, *att.shape[-2:])).sum(-1), rowptr)
    return reduce_rows(alpha[:, :, None] * messages, rowptr, "sum")


def attend_gatv2_fake(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    _heads("x_src", x_src)
    _heads("x_dst", x_dst)
    if att.shape[-2:] != x_src.shape[1:] or x_dst.shape[1:] != x_src.shape[1:]:
        raise ValueError(
            f"x_src, x_dst and att must agree on heads and channels, got {tuple(x_src.shape)}, "
            f"{tuple(x_dst.shape)} and {tuple(att.shape)}"
        )
    return x_src.new_empty((rowptr.shape[0] - 1, *x_src.shape[1:]), dtype=torch.float32)


def attend_gatv2_cost(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Cost:
    """Six operations an edge and channel: add, ReLU, dot product and weighted sum."""
    edges, rows, width = src.numel(), rowptr.shape[0] - 1, x_src.shape[1] * x_src.shape[2]
    read = edges * width * x_src.element_size() + x_dst.nbytes
    read += rowptr.nbytes + src.nbytes + att.nbytes
    return Cost(6 * edges * width, read + 4 * rows * width)


def attend_gatv2_samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    for nodes, graph, heads, width, rand in _sample_shapes(device):
        x_src, x_dst = rand(nodes, heads, width), rand(nodes, heads, width)
        yield x_src, x_dst, rand(heads, width), *graph
        yield x_src, x_dst, rand(1, heads, width), *graph, 0.05


# quantized_attend_gatv2


def quantized_attend_gatv2_reference(
    x_src: Tensor,
    scale_src: Tensor,
    zero_point_src: Tensor,
    x_dst: Tensor,
    scale_dst: Tensor,
    zero_point_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    """`attend_gatv2` on int8 codes x_src [S, H, C] and x_dst [N, H, C]."""
    left = _floats(x_src, scale_src, zero_point_src)
    right = _floats(x_dst, scale_dst, zero_point_dst)
    return attend_gatv2_reference(left, right, att, rowptr, src, negative_slope)


def quantized_attend_gatv2_fake(
    x_src: Tensor,
    scale_src: Tensor,
    zero_point_src: Tensor,
    x_dst: Tensor,
    scale_dst: Tensor,
    zero_point_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    _int8("x_src", x_src)
    _int8("x_dst", x_dst)
    return attend_gatv2_fake(x_src, x_dst, att, rowptr, src, negative_slope)


def quantized_attend_gatv2_cost(
    x_src: Tensor,
    scale_src: Tensor,
    zero_point_src: Tensor,
    x_dst: Tensor,
    scale_dst: Tensor,
    zero_point_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Cost:
    return attend_gatv2_cost(x_src, x_dst, att, rowptr, src, negative_slope)


def quantized_attend_gatv2_samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    for x_src, x_dst, *rest in attend_gatv2_samples(device):
        left, right = _qparams(device, 3), _qparams(device, -128)
        yield _codes(x_src), *left, _codes(x_dst), *right, *rest


def _sample_shapes(device: str) -> Iterator[tuple[int, tuple[Tensor, Tensor], int, int, Any]]:
    generator = torch.Generator().manual_seed(5)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    for nodes, rowptr, src in sample_graphs():
        for heads, width in [(1, 7), (4, 8), (2, 64), (8, 5)]:
            yield nodes, (rowptr.to(device), src.to(device)), heads, width, rand


def _codes(x: Tensor) -> Tensor:
    return (x * 40).round().clamp(-128, 127).to(torch.int8)


def _qparams(device: str, zero_point: int) -> tuple[Tensor, Tensor]:
    zero = torch.tensor(zero_point, dtype=torch.int32, device=device)
    return torch.tensor(0.02, device=device), zero


_NUMBA = "gnnfx.kernels.attention_numba"

ATTEND_GAT = register(
    OpDef(
        "attend_gat",
        attend_gat_reference,
        attend_gat_fake,
        attend_gat_cost,
        attend_gat_samples,
        impls=(numba_impl(_NUMBA, "attend_gat"),),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_GAT = register(
    OpDef(
        "quantized_attend_gat",
        quantized_attend_gat_reference,
        quantized_attend_gat_fake,
        quantized_attend_gat_cost,
        quantized_attend_gat_samples,
        impls=(numba_impl(_NUMBA, "quantized_attend_gat"),),
    )
)
ATTEND_GATV2 = register(
    OpDef(
        "attend_gatv2",
        attend_gatv2_reference,
        attend_gatv2_fake,
        attend_gatv2_cost,
        attend_gatv2_samples,
        impls=(numba_impl(_NUMBA, "attend_gatv2"),),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_GATV2 = register(
    OpDef(
        "quantized_attend_gatv2",
        quantized_attend_gatv2_reference,
        quantized_attend_gatv2_fake,
        quantized_attend_gatv2_cost,
        quantized_attend_gatv2_samples,
        impls=(numba_impl(_NUMBA, "quantized_attend_gatv2"),),
    )
)
