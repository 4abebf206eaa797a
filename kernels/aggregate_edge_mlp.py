"""Reduce messages that pass a linear layer, as EdgeConv's do, without a tensor of all of them.

    h[e] = act(x[src[e]] [+ x_dst[i]] [+ edge[perm[e]]])       over the edges e into node i
    y[i] = reduce of h[e] @ weight.T [+ linear_bias]

then the epilogue of `gnnfx.kernels.epilogue`.  In `quantized_aggregate_edge_mlp` the layer reads
codes of h, whose scale and zero point are given, and its sums are exact.  A node without edges
gets 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import reduce_rows
from gnnfx.kernels.aggregate_messages import (
    GATED_ACTIVATIONS,
    PLAIN_ACTIVATIONS,
    check_messages,
    messages_cost,
    messages_of,
    sample_messages,
)
from gnnfx.kernels.csr import REDUCES, arguments, degrees, num_bytes
from gnnfx.kernels.epilogue import check_epilogue, finish
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.linear import check_weight
from gnnfx.kernels.quantize import code_range, pack, sample_qparams, to_codes, unpack


def aggregate_edge_mlp_reference(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    weight: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `x` [S, C], `weight` [O, C], `x_dst` [N, C], `edge` [E, C]: [N, O]."""
    hidden = messages_of(x, rowptr, src, perm, x_dst, edge, None, None, message_activation, slope)
    messages = functional.linear(hidden, weight, linear_bias)
    return _finish(messages, rowptr, reduce, bias, residual, activation)


def _finish(
    messages: Tensor,
    rowptr: Tensor,
    reduce: str,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    total = reduce_rows(messages, rowptr, reduce)
    if reduce == "mean":
        total = total / degrees(rowptr)[:, None]
    return finish(total, None, None, None, bias, residual, activation)


def aggregate_edge_mlp_fake(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    weight: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    if weight.dim() != 2 or x.dim() != 2 or weight.shape[1] != x.shape[1]:
        got = f"{tuple(weight.shape)} and {tuple(x.shape)}"
        raise ValueError(f"weight must be [O, C] and x [S, C], got {got}")
    _check_hidden(x, rowptr, src, perm, x_dst, edge, message_activation, reduce)
    num_rows, outputs = rowptr.shape[0] - 1, weight.shape[0]
    check_epilogue(num_rows, outputs, None, bias, residual, activation)
    return x.new_empty((num_rows, outputs), dtype=torch.float32)


def _check_hidden(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None,
    edge: Tensor | None,
    activation: str,
    reduce: str,
) -> None:
    parts = (rowptr, src, perm, x_dst, edge, None, None)
    check_messages(x.shape[1], *parts, activation, reduce)
    if activation in GATED_ACTIVATIONS:
        raise ValueError(f"message_activation must be one of {PLAIN_ACTIVATIONS}, not gated")
    if reduce not in REDUCES:
        raise ValueError(f"reduce must be one of {REDUCES}, got {reduce!r}")


def aggregate_edge_mlp_cost(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    weight: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Cost:
    """A row of x and a product with the weight for each edge; rows are written once."""
    outputs, channels = weight.shape
    cost = messages_cost(channels, 4 * channels, src, edge, None)
    used = None if edge is None else perm
    read = num_bytes(rowptr, used, x_dst, weight, linear_bias, bias, residual)
    flops = cost.flops + 2 * src.shape[0] * outputs * channels
    moved = cost.bytes + read + 4 * (rowptr.shape[0] - 1) * outputs
    return Cost(flops, moved, cost.gathered)


def aggregate_edge_mlp_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(5)
    for i, (x, rowptr, src, parts) in enumerate(sample_messages(device)):
        perm, x_dst, edge, edge_weight, _, activation, slope = parts
        outputs = (7, 64, 16)[i % 3]
        yield arguments(
            aggregate_edge_mlp_reference,
            *(x, rowptr, src, perm),
            torch.randn(outputs, x.shape[1], generator=generator).to(device),
            torch.linspace(-1, 1, outputs, device=device) if i % 2 else None,
            x_dst,
            edge if edge_weight is None else None,
            activation,
            slope,
            REDUCES[i % 4],
            activation="relu" if i % 5 == 2 else "none",
        )


def quantized_aggregate_edge_mlp_reference(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    hidden_scale: Tensor,
    hidden_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    weight_bits: int = 8,
) -> Tensor:
    """float32 `x` [S, C], codes `weight` [O, C packed], `weight_scale` [O]: float32 [N, O]."""
    hidden = messages_of(x, rowptr, src, perm, x_dst, edge, None, None, message_activation, slope)
    codes = to_codes(hidden, hidden_scale, hidden_zero_point, 8)
    steps = (codes.int() - hidden_zero_point).double()
    total = (steps @ unpack(weight, x.shape[1], weight_bits).double().t()).float()
    multiplier = hidden_scale * weight_scale
    messages = finish(total, multiplier, None, None, linear_bias, None, "none")
    return _finish(messages, rowptr, reduce, bias, residual, activation)


def quantized_aggregate_edge_mlp_fake(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    hidden_scale: Tensor,
    hidden_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    weight_bits: int = 8,
) -> Tensor:
    check_weight(weight, weight_scale, x.shape[1], weight_bits)
    _check_hidden(x, rowptr, src, perm, x_dst, edge, message_activation, reduce)
    num_rows, outputs = rowptr.shape[0] - 1, weight.shape[0]
    check_epilogue(num_rows, outputs, None, bias, residual, activation)
    return x.new_empty((num_rows, outputs))


def quantized_aggregate_edge_mlp_cost(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    hidden_scale: Tensor,
    hidden_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    linear_bias: Tensor | None = None,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    weight_bits: int = 8,
) -> Cost:
    """A row of x and a product with the weight for each edge; rows are written once."""
    outputs, channels = weight.shape[0], x.shape[1]
    cost = messages_cost(channels, 4 * channels, src, edge, None)
    used = None if edge is None else perm
    read = num_bytes(rowptr, used, x_dst, weight, weight_scale, linear_bias, bias, residual)
    read += num_bytes(hidden_scale, hidden_zero_point)
    flops = cost.flops + 2 * src.shape[0] * outputs * channels
    moved = cost.bytes + read + 4 * (rowptr.shape[0] - 1) * outputs
    return Cost(flops, moved, cost.gathered)


def quantized_aggregate_edge_mlp_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(6)
    for i, args in enumerate(aggregate_edge_mlp_samples(device)):
        x, rowptr, src, perm, weight, *rest = args
        assert isinstance(weight, Tensor)
        bits = (8, 4)[i % 2]
        low, high = code_range(bits)
        codes = torch.randint(low, high + 1, weight.shape, generator=generator, dtype=torch.int8)
        scales = torch.rand(len(codes), generator=generator).to(device) * 0.05
        qparams = sample_qparams(0.05, (0, 3, -128)[i % 3], device)
        packed = pack(codes, bits).to(device)
        yield (x, rowptr, src, perm, *qparams, packed, scales, *rest, bits)


AGGREGATE_EDGE_MLP = register(
    OpDef(
        name="aggregate_edge_mlp",
        reference=aggregate_edge_mlp_reference,
        fake=aggregate_edge_mlp_fake,
        cost=aggregate_edge_mlp_cost,
        samples=aggregate_edge_mlp_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_edge_mlp_cpu", "aggregate_edge_mlp"),
            triton_impl("gnnfx.kernels.aggregate_edge_mlp_triton", "aggregate_edge_mlp"),
        ),
        differentiable=True,
    )
)
QUANTIZED_AGGREGATE_EDGE_MLP = register(
    OpDef(
        name="quantized_aggregate_edge_mlp",
        reference=quantized_aggregate_edge_mlp_reference,
        fake=quantized_aggregate_edge_mlp_fake,
        cost=quantized_aggregate_edge_mlp_cost,
        samples=quantized_aggregate_edge_mlp_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_edge_mlp_cpu", "quantized_aggregate_edge_mlp"),
            triton_impl("gnnfx.kernels.aggregate_edge_mlp_triton", "quantized_aggregate_edge_mlp"),
        ),
    )
)
