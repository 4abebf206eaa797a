"""GATv2's attention: logit[e, h] = sum over c of att[h, c] * leaky_relu(x_src[src[e]] + x_dst[i]).

The rows that are scored are those that are summed; `edge[edge_index[e]]` is added before the ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.attention import (
    Edges,
    Samples,
    attention_cost,
    check_edges,
    check_floats,
    check_rows,
    edge_flops,
    edge_rows,
    empty_heads,
    finish_heads,
    weigh,
)
from gnnfx.kernels.csr import arguments, check_csr, row_of_edge
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import dequantize_reference, sample_qparams


def reference(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `x_src` [S, H, C], `x_dst` [N, H, C], `att` [H, C]: [N, H * C] or [N, C].

    `edge` [E, H, C] in any order, and where the edges of `src` are in it: `edge_index` [E]; with
    `edge_weight` [H * C, D] and `edge_bias` [H * C], `edge` is [E, D] and passes a linear layer.
    `bias` [H * C] and `residual` [N, H * C], or [C] and [N, C] of a mean over heads.
    """
    edges = edge, edge_index, edge_weight, edge_bias
    rows = _weighted(x_src, x_dst, att, rowptr, src, edges, negative_slope)
    return finish_heads(rows, mean_heads, bias, residual, activation)


def _weighted(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edges: Edges,
    negative_slope: float,
) -> Tensor:
    rows = row_of_edge(rowptr, src.shape[0])
    pairs = x_src.index_select(0, src) + x_dst.index_select(0, rows)
    if (edge := edge_rows(edges, tuple(x_src.shape[1:]))) is not None:
        pairs = pairs + edge
    return weigh(x_src, (att * leaky_relu(pairs, negative_slope)).sum(-1), rowptr, src)


def quantized_reference(
    x_src: Tensor,
    scale_src: Tensor,
    zero_point_src: Tensor,
    x_dst: Tensor,
    scale_dst: Tensor,
    zero_point_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """As `attend_gatv2` with int8 codes `x_src` [S, H, C] and `x_dst` [N, H, C]: or codes."""
    channels = x_src.shape[-1]
    source = dequantize_reference(x_src, scale_src, zero_point_src, channels)
    target = dequantize_reference(x_dst, scale_dst, zero_point_dst, channels)
    edges = edge, edge_index, edge_weight, edge_bias
    rows = _weighted(source, target, att, rowptr, src, edges, negative_slope)
    qparams = out_scale, out_zero_point, out_bits
    return finish_heads(rows, mean_heads, bias, residual, activation, *qparams)


def _check(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edges: Edges,
) -> None:
    check_csr(rowptr, src)
    check_floats("att", att, tuple(x_src.shape[1:]))
    check_edges(edges, src, tuple(x_src.shape[1:]))
    want = (rowptr.shape[0] - 1, *x_src.shape[1:])
    if tuple(x_dst.shape) != want:
        raise ValueError(f"x_dst must be {want}, got {tuple(x_dst.shape)}")


def fake(*args: Any, **kwargs: Any) -> Tensor:
    given = arguments(reference, *args, **kwargs)
    x_src, x_dst, att, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    check_rows("x_src", x_src, torch.float32)
    check_rows("x_dst", x_dst, torch.float32)
    _check(x_src, x_dst, att, rowptr, src, edges)
    return empty_heads(x_src, rowptr.shape[0] - 1, *epilogue)


def quantized_fake(*args: Any, **kwargs: Any) -> Tensor:
    given = arguments(quantized_reference, *args, **kwargs)
    x_src, _, _, x_dst, _, _, att, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    check_rows("x_src", x_src, torch.int8)
    check_rows("x_dst", x_dst, torch.int8)
    _check(x_src, x_dst, att, rowptr, src, edges)
    return empty_heads(x_src, rowptr.shape[0] - 1, *epilogue)


def cost(*args: Any, **kwargs: Any) -> Cost:
    """Each edge reads a row of x_src once: about six operations a head and six a channel."""
    given = arguments(reference, *args, **kwargs)
    x_src, x_dst, att, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    heads, channels = x_src.shape[1:]
    gathered = heads * channels * x_src.element_size()
    flops = heads * (6 + 6 * channels) + edge_flops(edges)
    read = x_dst, att, *edges
    return attention_cost(gathered, flops, x_src, rowptr, src, read, *epilogue)


def quantized_cost(*args: Any, **kwargs: Any) -> Cost:
    """As `attend_gatv2`, with rows of one byte a channel."""
    given = arguments(quantized_reference, *args, **kwargs)
    x_src, s, z, x_dst, scale, zero_point, att, rowptr, src, *others = given
    edge, order, weight, shift, _, *epilogue = others
    edges = edge, order, weight, shift
    heads, channels = x_src.shape[1:]
    gathered = heads * channels * x_src.element_size()
    flops = heads * (6 + 6 * channels) + edge_flops(edges)
    read = x_dst, att, s, z, scale, zero_point, *edges
    return attention_cost(gathered, flops, x_src, rowptr, src, read, *epilogue)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    draw = Samples(device)
    for number, heads, channels, rows, rowptr, src in draw.graphs():
        num_rows = rowptr.shape[0] - 1
        yield arguments(
            reference,
            draw.floats(rows, heads, channels),
            draw.floats(num_rows, heads, channels),
            draw.floats(heads, channels) * (0.1, 0.5)[number % 2],
            rowptr,
            src,
            *draw.edges(number, heads, channels, src),
            0.2 if number % 4 else 0.01,
            **draw.epilogue(number, heads, channels, num_rows),
        )


def quantized_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    draw = Samples(device)
    for number, heads, channels, rows, rowptr, src in draw.graphs():
        num_rows = rowptr.shape[0] - 1
        yield arguments(
            quantized_reference,
            draw.codes(rows, heads, channels),
            *sample_qparams(0.02, (0, 3, -128)[number % 3], device),
            draw.codes(num_rows, heads, channels),
            *sample_qparams(0.03, (0, -7)[number % 2], device),
            draw.floats(heads, channels) * (0.1, 0.5)[number % 2],
            rowptr,
            src,
            *draw.edges(number, heads, channels, src),
            0.2 if number % 4 else 0.01,
            **draw.quantized_epilogue(number, heads, channels, num_rows),
        )


ATTEND_GATV2 = register(
    OpDef(
        name="attend_gatv2",
        reference=reference,
        fake=fake,
        cost=cost,
        samples=samples,
        impls=(
            numba_impl("gnnfx.kernels.attend_gatv2_numba", "attend_gatv2"),
            triton_impl("gnnfx.kernels.attention_triton", "attend_gatv2"),
        ),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_GATV2 = register(
    OpDef(
        name="quantized_attend_gatv2",
        reference=quantized_reference,
        fake=quantized_fake,
        cost=quantized_cost,
        samples=quantized_samples,
        impls=(
            numba_impl("gnnfx.kernels.attend_gatv2_numba", "quantized_attend_gatv2"),
            triton_impl("gnnfx.kernels.attention_triton", "quantized_attend_gatv2"),
        ),
    )
)
