"""Attention over incoming edges without anything of size [E, H, C].

    GAT:    logit[e, h] = leaky_relu(a_src[src[e], h] + a_dst[i, h] [+ a_edge[e, h]])
    GATv2:  logit[e, h] = sum over c of att[h, c] * leaky_relu(x_src[src[e], h, c] + x_dst[i, h, c])

    y[i, h] = sum over the edges e into i of softmax(logit)[e, h] * x[src[e], h]

The softmax is that of `gnnfx.kernels.softmax`.  The quantized forms read int8 codes as
scale * (q - zero_point) and are otherwise the same, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import aggregate_reference
from gnnfx.kernels.csr import (
    arguments,
    check_csr,
    num_bytes,
    row_of_edge,
    sample_graphs,
    sample_large_graph,
)
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import dequantize_reference, sample_qparams
from gnnfx.kernels.softmax import reference as segment_softmax


def _check_rows(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype or x.dim() != 3:
        raise ValueError(f"{name} must be {dtype} [rows, H, C], got {x.dtype} {tuple(x.shape)}")


def _check_scores(name: str, scores: Tensor, shape: tuple[int, ...]) -> None:
    if scores.dtype != torch.float32 or tuple(scores.shape) != shape:
        got = f"{scores.dtype} {tuple(scores.shape)}"
        raise ValueError(f"{name} must be float32 {shape}, got {got}")


def _check_gat(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None,
) -> None:
    heads = x.shape[1]
    check_csr(rowptr, src)
    _check_scores("a_src", a_src, (x.shape[0], heads))
    _check_scores("a_dst", a_dst, (rowptr.shape[0] - 1, heads))
    if a_edge is not None:
        _check_scores("a_edge", a_edge, (src.shape[0], heads))


def attend_gat_reference(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    """float32 `x` [S, H, C], `a_src` [S, H], `a_dst` [N, H], `a_edge` [E, H]: [N, H, C]."""
    rows = row_of_edge(rowptr, src.shape[0])
    logits = a_src.index_select(0, src) + a_dst.index_select(0, rows)
    if a_edge is not None:
        logits = logits + a_edge
    alpha = segment_softmax(leaky_relu(logits, negative_slope), rowptr)
    return aggregate_reference(x, rowptr, src, alpha)


def attend_gat_fake(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    _check_rows("x", x, torch.float32)
    _check_gat(x, a_src, a_dst, rowptr, src, a_edge)
    return x.new_empty((rowptr.shape[0] - 1, *x.shape[1:]))


def attend_gat_cost(
    x: Tensor,
    a_src: Tensor,
    a_dst: Tensor,
    rowptr: Tensor,
    src: Tensor,
    a_edge: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Cost:
    """Each edge reads a row of x and its scores: about eight operations a head, two a channel."""
    edges, (heads, channels) = src.shape[0], x.shape[1:]
    gathered = edges * heads * (channels * x.element_size() + a_src.element_size())
    written = 4 * (rowptr.shape[0] - 1) * heads * channels
    moved = gathered + num_bytes(a_dst, rowptr, src, a_edge) + written
    return Cost(edges * heads * (8 + 2 * channels), moved, gathered)


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
    """As `attend_gat` on q - zero_point of int8 codes `x` [S, H, C], times `scale`."""
    steps = (x.int() - zero_point).float()
    return scale * attend_gat_reference(steps, a_src, a_dst, rowptr, src, a_edge, negative_slope)


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
    _check_rows("x", x, torch.int8)
    _check_gat(x, a_src, a_dst, rowptr, src, a_edge)
    return x.new_empty((rowptr.shape[0] - 1, *x.shape[1:]), dtype=torch.float32)


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
    """As `attend_gat`, with rows of one byte a channel."""
    return attend_gat_cost(x, a_src, a_dst, rowptr, src, a_edge, negative_slope)


def attend_gatv2_reference(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    """float32 `x_src` [S, H, C], `x_dst` [N, H, C], `att` [H, C]: [N, H, C]."""
    rows = row_of_edge(rowptr, src.shape[0])
    pairs = leaky_relu(x_src.index_select(0, src) + x_dst.index_select(0, rows), negative_slope)
    alpha = segment_softmax((att * pairs).sum(-1), rowptr)
    return aggregate_reference(x_src, rowptr, src, alpha)


def _check_gatv2(x_src: Tensor, x_dst: Tensor, att: Tensor, rowptr: Tensor, src: Tensor) -> None:
    check_csr(rowptr, src)
    _check_scores("att", att, tuple(x_src.shape[1:]))
    if tuple(x_dst.shape) != (rowptr.shape[0] - 1, *x_src.shape[1:]):
        want = (rowptr.shape[0] - 1, *x_src.shape[1:])
        raise ValueError(f"x_dst must be {want}, got {tuple(x_dst.shape)}")


def attend_gatv2_fake(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    _check_rows("x_src", x_src, torch.float32)
    _check_rows("x_dst", x_dst, torch.float32)
    _check_gatv2(x_src, x_dst, att, rowptr, src)
    return x_src.new_empty((rowptr.shape[0] - 1, *x_src.shape[1:]))


def attend_gatv2_cost(
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    rowptr: Tensor,
    src: Tensor,
    negative_slope: float = 0.2,
) -> Cost:
    """Each edge reads a row of x_src once: about six operations a head and six a channel."""
    edges, (heads, channels) = src.shape[0], x_src.shape[1:]
    gathered = edges * heads * channels * x_src.element_size()
    written = 4 * (rowptr.shape[0] - 1) * heads * channels
    moved = gathered + num_bytes(x_dst, att, rowptr, src) + written
    return Cost(edges * heads * (6 + 6 * channels), moved, gathered)


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
    """As `attend_gatv2` with int8 codes `x_src` [S, H, C] and `x_dst` [N, H, C]."""
    channels = x_src.shape[-1]
    source = dequantize_reference(x_src, scale_src, zero_point_src, channels)
    target = dequantize_reference(x_dst, scale_dst, zero_point_dst, channels)
    return attend_gatv2_reference(source, target, att, rowptr, src, negative_slope)


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
    _check_rows("x_src", x_src, torch.int8)
    _check_rows("x_dst", x_dst, torch.int8)
    _check_gatv2(x_src, x_dst, att, rowptr, src)
    return x_src.new_empty((rowptr.shape[0] - 1, *x_src.shape[1:]), dtype=torch.float32)


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
    """As `attend_gatv2`, with rows of one byte a channel."""
    return attend_gatv2_cost(x_src, x_dst, att, rowptr, src, negative_slope)


_SAMPLE_SHAPES = [(1, 5), (8, 8), (4, 16), (1, 1), (3, 7), (1, 40), (2, 32), (4, 64), (1, 128)]


def attend_gat_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    for i, (heads, channels) in enumerate(_SAMPLE_SHAPES * 2):
        rows, rowptr, src = graphs[i % len(graphs)]
        spread = (1, 30)[i % 2]  # far apart, so that most weights underflow
        yield arguments(
            attend_gat_reference,
            rand(rows, heads, channels),
            rand(rows, heads) * spread,
            rand(rowptr.shape[0] - 1, heads) * spread,
            rowptr,
            src,
            rand(src.shape[0], heads) if i % 3 == 1 else None,
            0.2 if i % 4 else 0.01,
        )


def quantized_attend_gat_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)
    for i, (x, *others) in enumerate(attend_gat_samples(device)):
        assert isinstance(x, Tensor)
        codes = torch.randint(-128, 128, x.shape, generator=generator, dtype=torch.int8)
        yield codes.to(device), *sample_qparams(0.02, (0, 3, -128)[i % 3], device), *others


def attend_gatv2_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    for i, (heads, channels) in enumerate(_SAMPLE_SHAPES * 2):
        rows, rowptr, src = graphs[i % len(graphs)]
        yield arguments(
            attend_gatv2_reference,
            rand(rows, heads, channels),
            rand(rowptr.shape[0] - 1, heads, channels),
            rand(heads, channels) * (0.1, 0.5)[i % 2],
            rowptr,
            src,
            0.2 if i % 4 else 0.01,
        )


def quantized_attend_gatv2_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def codes(like: Tensor) -> Tensor:
        values = torch.randint(-128, 128, like.shape, generator=generator, dtype=torch.int8)
        return values.to(device)

    for i, (x_src, x_dst, *others) in enumerate(attend_gatv2_samples(device)):
        assert isinstance(x_src, Tensor)
        assert isinstance(x_dst, Tensor)
        source = codes(x_src), *sample_qparams(0.02, (0, 3, -128)[i % 3], device)
        yield *source, codes(x_dst), *sample_qparams(0.03, (0, -7)[i % 2], device), *others


ATTEND_GAT = register(
    OpDef(
        name="attend_gat",
        reference=attend_gat_reference,
        fake=attend_gat_fake,
        cost=attend_gat_cost,
        samples=attend_gat_samples,
        impls=(
            numba_impl("gnnfx.kernels.attention_numba", "attend_gat"),
            triton_impl("gnnfx.kernels.attention_triton", "attend_gat"),
        ),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_GAT = register(
    OpDef(
        name="quantized_attend_gat",
        reference=quantized_attend_gat_reference,
        fake=quantized_attend_gat_fake,
        cost=quantized_attend_gat_cost,
        samples=quantized_attend_gat_samples,
        impls=(
            numba_impl("gnnfx.kernels.attention_numba", "quantized_attend_gat"),
            triton_impl("gnnfx.kernels.attention_triton", "quantized_attend_gat"),
        ),
    )
)
ATTEND_GATV2 = register(
    OpDef(
        name="attend_gatv2",
        reference=attend_gatv2_reference,
        fake=attend_gatv2_fake,
        cost=attend_gatv2_cost,
        samples=attend_gatv2_samples,
        impls=(
            numba_impl("gnnfx.kernels.attention_numba", "attend_gatv2"),
            triton_impl("gnnfx.kernels.attention_triton", "attend_gatv2"),
        ),
        differentiable=True,
    )
)
QUANTIZED_ATTEND_GATV2 = register(
    OpDef(
        name="quantized_attend_gatv2",
        reference=quantized_attend_gatv2_reference,
        fake=quantized_attend_gatv2_fake,
        cost=quantized_attend_gatv2_cost,
        samples=quantized_attend_gatv2_samples,
        impls=(
            numba_impl("gnnfx.kernels.attention_numba", "quantized_attend_gatv2"),
            triton_impl("gnnfx.kernels.attention_triton", "quantized_attend_gatv2"),
        ),
    )
)
