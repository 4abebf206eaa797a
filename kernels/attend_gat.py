"""GAT's attention: logit[e, h] = leaky_relu(a_src[src[e], h] + a_dst[i, h] [+ a_edge[e, h]])."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.attention import (
    Samples,
    attention_cost,
    check_floats,
    check_rows,
    empty_heads,
    finish_heads,
    weigh,
)
from gnnfx.kernels.csr import arguments, check_csr, row_of_edge
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import sample_qparams


def reference(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `x` [S, H, C], `a_src` [S, H], `a_dst` [N, H], `a_edge` [E, H]: [N, H * C] or [N, C].

    `bias` [H * C] and `residual` [N, H * C], or [C] and [N, C] of a mean over heads.
    """
    rows = _weighted(x, a_src, a_dst, rowptr, src, a_edge, negative_slope)
    return finish_heads(rows, mean_heads, bias, residual, activation)


def _weighted(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None,
    negative_slope: float,
) -> Tensor:
    rows = row_of_edge(rowptr, src.shape[0])
    logits = a_src.index_select(0, src) + a_dst.index_select(0, rows)
    if a_edge is not None:
        logits = logits + a_edge
    return weigh(x, leaky_relu(logits, negative_slope), rowptr, src)


def quantized_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    mean_heads: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """As `attend_gat` on q - zero_point of int8 codes `x` [S, H, C], times `scale`: or codes."""
    steps = (x.int() - zero_point).float()
    rows = scale * _weighted(steps, a_src, a_dst, rowptr, src, a_edge, negative_slope)
    qparams = out_scale, out_zero_point, out_bits
    return finish_heads(rows, mean_heads, bias, residual, activation, *qparams)


def _check(x: Tensor, scores: tuple[Any, ...], rowptr: Tensor, src: Tensor) -> None:
    a_src, a_dst, a_edge = scores
    heads = x.shape[1]
    check_csr(rowptr, src)
    check_floats("a_src", a_src, (x.shape[0], heads))
    check_floats("a_dst", a_dst, (rowptr.shape[0] - 1, heads))
    if a_edge is not None:
        check_floats("a_edge", a_edge, (src.shape[0], heads))


def fake(*args: Any, **kwargs: Any) -> Tensor:
    x, a_src, a_dst, rowptr, src, a_edge, _, *epilogue = arguments(reference, *args, **kwargs)
    check_rows("x", x, torch.float32)
    _check(x, (a_src, a_dst, a_edge), rowptr, src)
    return empty_heads(x, rowptr.shape[0] - 1, *epilogue)


def quantized_fake(*args: Any, **kwargs: Any) -> Tensor:
    given = arguments(quantized_reference, *args, **kwargs)
    x, _, _, a_src, a_dst, rowptr, src, a_edge, _, *epilogue = given
    check_rows("x", x, torch.int8)
    _check(x, (a_src, a_dst, a_edge), rowptr, src)
    return empty_heads(x, rowptr.shape[0] - 1, *epilogue)


def cost(*args: Any, **kwargs: Any) -> Cost:
    """Each edge reads a row of x and its scores: about eight operations a head, two a channel."""
    x, a_src, a_dst, rowptr, src, a_edge, _, *epilogue = arguments(reference, *args, **kwargs)
    heads, channels = x.shape[1:]
    gathered = heads * (channels * x.element_size() + a_src.element_size())
    flops = heads * (8 + 2 * channels)
    return attention_cost(gathered, flops, x, rowptr, src, (a_dst, a_edge), *epilogue)


def quantized_cost(*args: Any, **kwargs: Any) -> Cost:
    """As `attend_gat`, with rows of one byte a channel."""
    given = arguments(quantized_reference, *args, **kwargs)
    x, scale, zero_point, a_src, a_dst, rowptr, src, a_edge, _, *epilogue = given
    heads, channels = x.shape[1:]
    gathered = heads * (channels * x.element_size() + a_src.element_size())
    read = a_dst, a_edge, scale, zero_point
    flops = heads * (8 + 2 * channels)
    return attention_cost(gathered, flops, x, rowptr, src, read, *epilogue)


def _sample_scores(
    draw: Samples, number: int, heads: int, rows: int, rowptr: Tensor, src: Tensor
) -> tuple[Any, ...]:
    spread = (1, 30)[number % 2]  # far apart, so that most weights underflow
    return (
        draw.floats(rows, heads) * spread,
        draw.floats(rowptr.shape[0] - 1, heads) * spread,
        rowptr,
        src,
        draw.floats(src.shape[0], heads) if number % 3 == 1 else None,
        0.2 if number % 4 else 0.01,
    )


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    draw = Samples(device)
    for number, heads, channels, rows, rowptr, src in draw.graphs():
        x = draw.floats(rows, heads, channels)
        scores = _sample_scores(draw, number, heads, rows, rowptr, src)
        epilogue = draw.epilogue(number, heads, channels, rowptr.shape[0] - 1)
        yield arguments(reference, x, *scores, **epilogue)


def quantized_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    draw = Samples(device)
    for number, heads, channels, rows, rowptr, src in draw.graphs():
        qparams = sample_qparams(0.02, (0, 3, -128)[number % 3], device)
        scores = _sample_scores(draw, number, heads, rows, rowptr, src)
        epilogue = draw.quantized_epilogue(number, heads, channels, rowptr.shape[0] - 1)
        codes = draw.codes(rows, heads, channels)
        yield arguments(quantized_reference, codes, *qparams, *scores, **epilogue)


ATTEND_GAT = register(
    OpDef(
        name="attend_gat",
        reference=reference,
        fake=fake,
        cost=cost,
        samples=samples,
        impls=(
            numba_impl("gnnfx.kernels.attend_gat_numba", "attend_gat"),
            triton_impl("gnnfx.kernels.attention_triton", "attend_gat"),
        ),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_GAT = register(
    OpDef(
        name="quantized_attend_gat",
        reference=quantized_reference,
        fake=quantized_fake,
        cost=quantized_cost,
        samples=quantized_samples,
        impls=(
            numba_impl("gnnfx.kernels.attend_gat_numba", "quantized_attend_gat"),
            triton_impl("gnnfx.kernels.attention_triton", "quantized_attend_gat"),
        ),
    )
)
