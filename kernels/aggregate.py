"""Reduce over incoming edges: y[i] = reduce of w[e] * x[src[e]] over the edges e into node i.

`aggregate` takes float rows.  `quantized_aggregate` takes integer codes and sums them exactly:
dequantizing costs one multiply per output value and none per edge, and the result may be codes
again.  Both finish with `gnnfx.kernels.epilogue`.  A node without edges gets 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate_gradient import aggregate_gradient
from gnnfx.kernels.csr import (
    REDUCES,
    arguments,
    check_csr,
    degrees,
    num_bytes,
    row_of_edge,
    sample_graphs,
    sample_large_graph,
)
from gnnfx.kernels.epilogue import (
    check_epilogue,
    empty_result,
    finish,
    is_activated,
    result_bytes,
)
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import check_codes, code_range, pack, sample_qparams, unpack

_TORCH_REDUCE = {"max": "amax", "min": "amin"}


def reduce_rows(messages: Tensor, rowptr: Tensor, reduce: str) -> Tensor:
    """Messages [E, ...] to [N, ...]; a mean is divided by the caller."""
    rows = row_of_edge(rowptr, messages.shape[0])
    out = messages.new_zeros((rowptr.shape[0] - 1, *messages.shape[1:]))
    if reduce in ("sum", "mean"):
        return out.index_add(0, rows, messages)
    wide = rows.view(-1, *(1,) * (messages.dim() - 1)).expand_as(messages)
    return out.scatter_reduce(0, wide, messages, _TORCH_REDUCE[reduce], include_self=False)


def aggregate_reference(
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
) -> Tensor:
    """float32 `x` [S, C] or [S, H, C], `weight` [E] or [E, H]: [N, C] or [N, H, C].

    `row_scale` [N], `self_weight` 0-d (adds self_weight * x[i]), `bias` [C] and `residual`
    [N, C] go with a two-dimensional `x`.
    """
    num_rows = rowptr.shape[0] - 1
    messages = x.index_select(0, src)
    if weight is not None:
        messages = messages * weight.view(*weight.shape, *(1,) * (x.dim() - weight.dim()))
    total = reduce_rows(messages, rowptr, reduce)
    if reduce == "mean":
        total = total / degrees(rowptr).view(-1, *(1,) * (x.dim() - 1))
    self_term = None if self_weight is None else self_weight * x[:num_rows]
    return finish(total, None, row_scale, self_term, bias, residual, activation)


def aggregate_fake(
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
) -> Tensor:
    check_csr(rowptr, src)
    if x.dtype != torch.float32 or x.dim() not in (2, 3):
        raise ValueError(f"x must be float32 [S, C] or [S, H, C], got {x.dtype} {tuple(x.shape)}")
    if weight is not None and tuple(weight.shape) not in [
        (src.shape[0],),
        (src.shape[0], *x.shape[1:-1]),
    ]:
        want = "[E]" if x.dim() == 2 else "[E] or [E, H]"
        raise ValueError(
            f"weight must be {want}, got {tuple(weight.shape)} for {src.shape[0]} edges"
        )
    if reduce not in REDUCES:
        raise ValueError(f"reduce must be one of {REDUCES}, got {reduce!r}")
    num_rows = rowptr.shape[0] - 1
    if x.dim() == 3:
        if any(t is not None for t in (row_scale, self_weight, bias, residual)):
            raise ValueError("row_scale, self_weight, bias and residual need x of two dims")
        return x.new_empty((num_rows, *x.shape[1:]))
    check_epilogue(num_rows, x.shape[1], row_scale, bias, residual, activation)
    return x.new_empty((num_rows, x.shape[1]))


def aggregate_cost(
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
) -> Cost:
    """Each edge reads a row of x and does one or two operations a channel; rows are written."""
    num_rows, edges = rowptr.shape[0] - 1, src.shape[0]
    channels = x.shape[1:].numel()
    gathered = edges * channels * 4
    own = num_rows * channels * 4 if self_weight is not None else 0
    read = num_bytes(rowptr, src, weight, row_scale, self_weight, bias, residual) + own
    flops = edges * channels * (1 if weight is None else 2)
    return Cost(flops, gathered + read + 4 * num_rows * channels, gathered)


def aggregate_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    widths = [(5,), (64,), (7,), (1,), (40,), (128,), (16,), (256,), (32,), (2, 8), (4, 5), (3, 40)]
    graphs = [*sample_graphs(device), sample_large_graph(device)]
    for i, shape in enumerate(widths * 2):
        rows, rowptr, src = graphs[i % len(graphs)]
        num_rows, edges, x = rowptr.shape[0] - 1, src.shape[0], rand(rows, *shape)
        for j, reduce in enumerate(REDUCES):
            if len(shape) == 2:
                weight = (rand(edges, shape[0]), None, rand(edges))[(i + j) % 3]
                yield arguments(aggregate_reference, x, rowptr, src, weight, reduce)
                continue
            yield arguments(
                aggregate_reference,
                x,
                rowptr,
                src,
                rand(edges) if (i + j) % 2 and (j < 2 or shape[0] in (5, 128)) else None,
                reduce,
                row_scale=rand(num_rows) if i % 3 == 0 else None,
                self_weight=rand(1)[0] if i % 4 == 1 and rows >= num_rows else None,
                bias=rand(*shape) if i % 3 != 1 else None,
                residual=rand(num_rows, *shape) if i % 4 == 2 else None,
                activation=("none", "relu", "none", "relu", "elu")[i % 5],
            )


def quantized_aggregate_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    weight: Tensor | None = None,
    weight_scale: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    """Codes `x` [S, C packed] of `channels`, int8 symmetric `weight` [E]: [N, C], floats or codes.

    S is the exact integer sum of w * (q - zero_point), or the greatest or least q - zero_point.
    A mean divides what the sum is multiplied by.
    """
    num_rows = rowptr.shape[0] - 1
    steps = unpack(x, channels, bits).long() - zero_point
    messages = steps.index_select(0, src)
    multiplier = scale
    if weight is not None and weight_scale is not None:
        messages = messages * weight.long()[:, None]
        multiplier = scale * weight_scale
    total = reduce_rows(messages, rowptr, reduce).float()
    if reduce == "mean":
        multiplier = multiplier / degrees(rowptr)[:, None]
    self_term = None if self_weight is None else self_weight * (scale * steps[:num_rows].float())
    return finish(
        total,
        multiplier,
        row_scale,
        self_term,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )


def quantized_aggregate_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    weight: Tensor | None = None,
    weight_scale: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    check_csr(rowptr, src)
    check_codes(x, channels, bits)
    if x.dim() != 2:
        raise ValueError(f"x must be codes [S, C], got {tuple(x.shape)}")
    if reduce not in REDUCES:
        raise ValueError(f"reduce must be one of {REDUCES}, got {reduce!r}")
    if (weight is None) != (weight_scale is None):
        raise ValueError("weight and weight_scale must be given together")
    if weight is not None:
        if weight.dtype != torch.int8 or tuple(weight.shape) != tuple(src.shape):
            got = f"{weight.dtype} {tuple(weight.shape)}"
            raise ValueError(f"weight must be int8 [{src.shape[0]}], got {got}")
        if reduce not in ("sum", "mean"):
            raise ValueError(f"reduce={reduce!r} takes no weight: codes are compared as they are")
    num_rows = rowptr.shape[0] - 1
    check_epilogue(
        num_rows,
        channels,
        row_scale,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )
    return empty_result(x, num_rows, channels, out_scale, out_bits)


def quantized_aggregate_cost(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    weight: Tensor | None = None,
    weight_scale: Tensor | None = None,
    reduce: str = "sum",
    row_scale: Tensor | None = None,
    self_weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Cost:
    """Each edge reads a row of codes and does one or two operations a channel."""
    num_rows, edges = rowptr.shape[0] - 1, src.shape[0]
    gathered = edges * x.shape[1]
    read = num_rows * x.shape[1] if self_weight is not None else 0
    read += num_bytes(rowptr, src, weight, scale, zero_point, weight_scale, row_scale, self_weight)
    read += num_bytes(bias, residual, out_scale, out_zero_point)
    flops = edges * channels * (1 if weight is None else 2)
    moved = gathered + read + result_bytes(num_rows, channels, out_scale, out_bits)
    return Cost(flops, moved, gathered)


def quantized_aggregate_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def codes(bits: int, *shape: int) -> Tensor:
        low, high = code_range(bits)
        values = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
        return pack(values, bits).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    widths = [5, 64, 7, 1, 40, 128, 16, 256, 32, 150]
    for i, channels in enumerate(widths * 4):
        rows, rowptr, src = graphs[i % len(graphs)]
        num_rows, edges = rowptr.shape[0] - 1, src.shape[0]
        bits = (8, 8, 4, 8, 2)[(i // 2) % 5]
        weighted = i % 4 == 3
        out_scale, out_zero_point = sample_qparams(0.31, (0, 5, -2)[i % 3], device)
        yield arguments(
            quantized_aggregate_reference,
            codes(bits, rows, channels),
            *sample_qparams(0.043, (0, 1, code_range(bits)[i % 2])[i % 3], device),
            rowptr,
            src,
            channels,
            weight=codes(8, edges) if weighted else None,
            weight_scale=torch.tensor(0.02, device=device) if weighted else None,
            reduce=("sum", "mean")[i % 2] if weighted else REDUCES[(i + i // 4) % 4],
            row_scale=rand(num_rows) if i % 3 == 0 else None,
            self_weight=rand(1)[0] if i % 5 == 1 and rows >= num_rows else None,
            bias=rand(channels) if i % 4 > 1 else None,
            residual=rand(num_rows, channels) if i % 7 == 2 else None,
            activation=("none", "relu", "none", "relu", "elu")[i % 5],
            out_scale=out_scale if i % 8 < 6 else None,
            out_zero_point=out_zero_point if i % 8 < 6 else None,
            bits=bits,
            out_bits=(8, 8, 8, 4, 2)[i % 5],
        )
    rows, rowptr, src = graphs[-1]
    for bits, channels in [(4, 40), (2, 128), (2, 40), (2, 16), (2, 4)]:
        yield arguments(
            quantized_aggregate_reference,
            codes(bits, rows, channels),
            *sample_qparams(0.043, 1, device),
            rowptr,
            src,
            channels,
            reduce="sum" if channels == 40 else "mean",
            bits=bits,
        )
    # The greatest sums: every code and weight at the end of its range, on a hub.
    rows, rowptr, src = graphs[5]
    for bits, channels in [(8, 128), (4, 40), (4, 128), (2, 7), (2, 64)]:
        low, high = code_range(bits)
        extreme = pack(torch.full((rows, channels), low, dtype=torch.int8), bits).to(device)
        weights = torch.full((src.shape[0],), -128, dtype=torch.int8, device=device)
        for weight in (None, weights):
            yield arguments(
                quantized_aggregate_reference,
                extreme,
                *sample_qparams(1.0, high, device),
                rowptr,
                src,
                channels,
                weight,
                None if weight is None else torch.tensor(1.0, device=device),
                bits=bits,
            )


AGGREGATE = register(
    OpDef(
        name="aggregate",
        reference=aggregate_reference,
        fake=aggregate_fake,
        cost=aggregate_cost,
        samples=aggregate_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_numba", "aggregate"),
            triton_impl("gnnfx.kernels.aggregate_triton", "aggregate"),
        ),
        differentiable=True,
        gradient=aggregate_gradient,
        reads_result=is_activated,
    )
)
QUANTIZED_AGGREGATE = register(
    OpDef(
        name="quantized_aggregate",
        reference=quantized_aggregate_reference,
        fake=quantized_aggregate_fake,
        cost=quantized_aggregate_cost,
        samples=quantized_aggregate_samples,
        impls=(
            numba_impl("gnnfx.kernels.quantized_aggregate_numba", "quantized_aggregate"),
            triton_impl("gnnfx.kernels.aggregate_triton", "quantized_aggregate"),
        ),
    )
)
