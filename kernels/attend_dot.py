"""Dot-product attention: logit[e, h] = score_scale * <query[i, h], key[src[e], h] [+ edge[e, h]]>.

Values have the same edge term: y[i, h] sums softmax(logit)[e, h] * (value[src[e], h] + edge[e, h]).
Rows of `edge` are read through `edge_index`, which says where the e-th edge by destination stood.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `query` [N, H, C], `key` and `value` [S, H, C]: [N, H * C] or [N, C].

    `edge` [E, H, C] goes with `edge_index` [E]; with `edge_weight` [H * C, D] and `edge_bias`
    [H * C] it is [E, D] and passes a linear layer first.  `bias` [H * C] and `residual` [N, H * C],
    or [C] and [N, C] of a mean over heads.
    """
    edges = edge, edge_index, edge_weight, edge_bias
    rows = _weighted(query, key, value, rowptr, src, edges, score_scale)
    return finish_heads(rows, mean_heads, bias, residual, activation)


def _weighted(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edges: Edges,
    score_scale: float,
) -> Tensor:
    rows = row_of_edge(rowptr, src.shape[0])
    keys, edge = key.index_select(0, src), edge_rows(edges, tuple(key.shape[1:]))
    if edge is not None:
        keys = keys + edge
    logits = (query.index_select(0, rows) * keys).sum(-1) * score_scale
    return weigh(value, logits, rowptr, src, edge)


def quantized_reference(
    query: Tensor,
    key: Tensor,
    key_scale: Tensor,
    key_zero_point: Tensor,
    value: Tensor,
    value_scale: Tensor,
    value_zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    score_scale: float = 1.0,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """As `attend_dot` with int8 codes `key` and `value` [S, H, C] and a float32 query: or codes."""
    channels = key.shape[-1]
    keys = dequantize_reference(key, key_scale, key_zero_point, channels)
    values = dequantize_reference(value, value_scale, value_zero_point, channels)
    edges = edge, edge_index, edge_weight, edge_bias
    rows = _weighted(query, keys, values, rowptr, src, edges, score_scale)
    qparams = out_scale, out_zero_point, out_bits
    return finish_heads(rows, mean_heads, bias, residual, activation, *qparams)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dtype: torch.dtype,
    csr: tuple[Tensor, Tensor],
    edges: Edges,
) -> None:
    rowptr, src = csr
    check_csr(rowptr, src)
    check_rows("key", key, dtype)
    check_rows("value", value, dtype)
    if key.shape != value.shape:
        raise ValueError(f"key is {tuple(key.shape)} but value is {tuple(value.shape)}")
    check_floats("query", query, (rowptr.shape[0] - 1, *key.shape[1:]))
    check_edges(edges, src, tuple(key.shape[1:]))


def fake(*args: Any, **kwargs: Any) -> Tensor:
    given = arguments(reference, *args, **kwargs)
    query, key, value, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    _check(query, key, value, torch.float32, (rowptr, src), edges)
    return empty_heads(value, rowptr.shape[0] - 1, *epilogue)


def quantized_fake(*args: Any, **kwargs: Any) -> Tensor:
    given = arguments(quantized_reference, *args, **kwargs)
    query, key, _, _, value, _, _, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    _check(query, key, value, torch.int8, (rowptr, src), edges)
    return empty_heads(value, rowptr.shape[0] - 1, *epilogue)


def cost(*args: Any, **kwargs: Any) -> Cost:
    """Each edge reads a row of keys and one of values: six operations a head, four a channel."""
    given = arguments(reference, *args, **kwargs)
    query, key, value, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    heads, channels = key.shape[1:]
    gathered = 2 * heads * channels * key.element_size()
    flops = heads * (6 + channels * (4 if edge is None else 6)) + edge_flops(edges)
    read = query, *edges
    return attention_cost(gathered, flops, value, rowptr, src, read, *epilogue)


def quantized_cost(*args: Any, **kwargs: Any) -> Cost:
    """As `attend_dot`, with rows of one byte a channel."""
    given = arguments(quantized_reference, *args, **kwargs)
    query, key, ks, kz, value, vs, vz, rowptr, src, edge, order, weight, shift, _, *epilogue = given
    edges = edge, order, weight, shift
    heads, channels = key.shape[1:]
    gathered = 2 * heads * channels * key.element_size()
    flops = heads * (6 + channels * (4 if edge is None else 6)) + edge_flops(edges)
    read = query, *edges, ks, kz, vs, vz
    return attention_cost(gathered, flops, value, rowptr, src, read, *epilogue)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    draw = Samples(device)
    for number, heads, channels, rows, rowptr, src in draw.graphs():
        num_rows = rowptr.shape[0] - 1
        yield arguments(
            reference,
            draw.floats(num_rows, heads, channels),
            draw.floats(rows, heads, channels),
            draw.floats(rows, heads, channels),
            rowptr,
            src,
            *draw.edges(number, heads, channels, src),
            (0.3, -1.0)[number % 2] / channels**0.5,
            **draw.epilogue(number, heads, channels, num_rows),
        )


def quantized_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    draw = Samples(device)
    for number, heads, channels, rows, rowptr, src in draw.graphs():
        num_rows = rowptr.shape[0] - 1
        yield arguments(
            quantized_reference,
            draw.floats(num_rows, heads, channels),
            draw.codes(rows, heads, channels),
            *sample_qparams(0.02, (0, 3, -128)[number % 3], device),
            draw.codes(rows, heads, channels),
            *sample_qparams(0.03, (0, -7)[number % 2], device),
            rowptr,
            src,
            *draw.edges(number, heads, channels, src),
            (0.3, -1.0)[number % 2] / channels**0.5,
            **draw.quantized_epilogue(number, heads, channels, num_rows),
        )


ATTEND_DOT = register(
    OpDef(
        name="attend_dot",
        reference=reference,
        fake=fake,
        cost=cost,
        samples=samples,
        impls=(
            numba_impl("gnnfx.kernels.attend_dot_numba", "attend_dot"),
            triton_impl("gnnfx.kernels.attention_triton", "attend_dot"),
        ),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_DOT = register(
    OpDef(
        name="quantized_attend_dot",
        reference=quantized_reference,
        fake=quantized_fake,
        cost=quantized_cost,
        samples=quantized_samples,
        impls=(
            numba_impl("gnnfx.kernels.attend_dot_numba", "quantized_attend_dot"),
            triton_impl("gnnfx.kernels.attention_triton", "quantized_attend_dot"),
        ),
    )
)
