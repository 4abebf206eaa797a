"""Reduce messages that are computed edge by edge, without a tensor of all of them.

    m[e] = act(x[src[e]] [+ x_dst[i]] [+ edge[perm[e]]]) + offset       over the edges e into i
    y[i] = reduce of m[e]

then the epilogue of `gnnfx.kernels.epilogue`.  `edge` holds features in the order of the user's
edge list.  With `edge_weight` [C, D] they are [E, D] and pass a linear layer first.  Gated
activations take messages of 2C channels, values and then their gates, to C: "glu" is
value * sigmoid(gate), "softplus_glu" softplus(value) * sigmoid(gate).
The reduction "softmax" sums softmax(temperature * m) * m, each channel by itself, as PyG's
SoftmaxAggregation (Li et al. 2020, "DeeperGCN", eq. 3).  `quantized_aggregate_messages` takes
codes for x.  A node without edges gets 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.aggregate import reduce_rows
from gnnfx.kernels.aggregate_many import (
    check_destination,
    check_features,
    features_of_edges,
)
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
from gnnfx.kernels.epilogue import check_epilogue, empty_result, finish, result_bytes
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import check_codes, code_range, pack, sample_qparams, unpack
from gnnfx.kernels.softmax import SEGMENT_SOFTMAX

PLAIN_ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "sigmoid")
MESSAGE_REDUCES = (*REDUCES, "softmax")
GATED_ACTIVATIONS = ("glu", "softplus_glu")
MESSAGE_ACTIVATIONS = (*PLAIN_ACTIVATIONS, *GATED_ACTIVATIONS)


def reduced_channels(channels: int, activation: str) -> int:
    """How many of `channels` a message has after its activation."""
    return channels // 2 if activation in GATED_ACTIVATIONS else channels


def activate(values: Tensor, activation: str, slope: float) -> Tensor:
    """One of MESSAGE_ACTIVATIONS; `slope` belongs to leaky_relu."""
    if activation == "leaky_relu":
        return functional.leaky_relu(values, slope)
    functions = {
        "none": lambda x: x,
        "relu": torch.relu,
        "silu": functional.silu,
        "sigmoid": torch.sigmoid,
        "glu": functional.glu,
        "softplus_glu": _softplus_glu,
    }
    result: Tensor = functions[activation](values)
    return result


def _softplus_glu(values: Tensor) -> Tensor:
    value, gate = values.chunk(2, -1)
    return functional.softplus(value) * torch.sigmoid(gate)


def messages_of(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None,
    edge: Tensor | None,
    edge_weight: Tensor | None,
    edge_bias: Tensor | None,
    activation: str,
    slope: float,
) -> Tensor:
    """The messages [E, C] in the order of destinations, for references."""
    messages = x.index_select(0, src)
    if x_dst is not None:
        messages = messages + x_dst.index_select(0, row_of_edge(rowptr, src.shape[0]))
    if edge is not None:
        messages = messages + features_of_edges(perm, edge, edge_weight, edge_bias)
    return activate(messages, activation, slope)


def aggregate_messages_reference(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `x` [S, C], `x_dst` [N, C], `edge` [E, C] or [E, D], `edge_weight` [C, D]: [N, C].

    `temperature` [C] belongs to the reduction "softmax"; without one it is 1.
    """
    messages = messages_of(
        x, rowptr, src, perm, x_dst, edge, edge_weight, edge_bias, message_activation, slope
    )
    messages = messages + offset
    if reduce == "softmax":
        logits = messages if temperature is None else messages * temperature
        messages = messages * SEGMENT_SOFTMAX.reference(logits, rowptr)
    total = reduce_rows(messages, rowptr, "sum" if reduce == "softmax" else reduce)
    if reduce == "mean":
        total = total / degrees(rowptr)[:, None]
    return finish(total, None, None, None, bias, residual, activation)


def aggregate_messages_fake(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    if x.dtype != torch.float32 or x.dim() != 2:
        raise ValueError(f"x must be float32 [S, C], got {x.dtype} {tuple(x.shape)}")
    num_rows = rowptr.shape[0] - 1
    check_messages(
        *(x.shape[1], rowptr, src, perm, x_dst, edge, edge_weight, edge_bias),
        *(message_activation, reduce),
    )
    channels = reduced_channels(x.shape[1], message_activation)
    _check_temperature(temperature, channels, reduce)
    check_epilogue(num_rows, channels, None, bias, residual, activation)
    return x.new_empty((num_rows, channels))


def check_messages(
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None,
    edge: Tensor | None,
    edge_weight: Tensor | None,
    edge_bias: Tensor | None,
    activation: str,
    reduce: str,
) -> None:
    """Raise ValueError unless the parts fit messages of so many `channels`."""
    check_csr(rowptr, src)
    check_csr(rowptr, perm)
    check_destination(rowptr.shape[0] - 1, channels, x_dst)
    check_features(src, channels, perm, edge, edge_weight, edge_bias)
    if activation not in MESSAGE_ACTIVATIONS:
        raise ValueError(
            f"message_activation must be one of {MESSAGE_ACTIVATIONS}, got {activation!r}"
        )
    if activation in GATED_ACTIVATIONS and channels % 2:
        raise ValueError(f"{activation!r} takes an even number of channels, got {channels}")
    if reduce not in MESSAGE_REDUCES:
        raise ValueError(f"reduce must be one of {MESSAGE_REDUCES}, got {reduce!r}")


def _check_temperature(temperature: Tensor | None, channels: int, reduce: str) -> None:
    if temperature is None:
        return
    if reduce != "softmax" or tuple(temperature.shape) != (channels,):
        got = f"{tuple(temperature.shape)} and {reduce!r}"
        raise ValueError(f"temperature must be {(channels,)} of the reduction softmax, got {got}")


def messages_cost(
    channels: int, row_bytes: int, src: Tensor, edge: Tensor | None, edge_weight: Tensor | None
) -> Cost:
    """Making the messages of all edges from rows of `row_bytes` bytes and reducing them."""
    edges, terms = src.shape[0], 2 if edge is None else 3
    flops = edges * channels * terms
    if edge_weight is not None:
        flops += 2 * edges * edge_weight.numel()
    gathered = edges * row_bytes
    return Cost(flops, gathered + num_bytes(src, edge, edge_weight), gathered)


def aggregate_messages_cost(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Cost:
    """Each edge reads a row of x and of its own features; rows are written once."""
    channels, num_rows = x.shape[1], rowptr.shape[0] - 1
    cost = messages_cost(channels, 4 * channels, src, edge, edge_weight)
    used = None if edge is None else perm
    read = num_bytes(rowptr, used, x_dst, edge_bias, temperature, bias, residual)
    written = 4 * num_rows * reduced_channels(channels, message_activation)
    return Cost(cost.flops, cost.bytes + read + written, cost.gathered)


def aggregate_messages_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    for i, (x, rowptr, src, parts) in enumerate(_all_messages(device)):
        channels, num_rows = reduced_channels(x.shape[1], str(parts[-2])), rowptr.shape[0] - 1
        yield arguments(
            aggregate_messages_reference,
            *(x, rowptr, src, *parts),
            **_reduction(i, channels, device),
            bias=torch.linspace(-1, 1, channels, device=device) if i % 3 == 1 else None,
            residual=torch.ones(num_rows, channels, device=device) if i % 3 == 2 else None,
            activation="relu" if i % 5 == 2 else "none",
        )


def _reduction(number: int, channels: int, device: str) -> dict[str, object]:
    """A reduction of messages that nothing or something is added to."""
    reduce = MESSAGE_REDUCES[(number + number // 5) % 5]
    heated = reduce == "softmax" and number // 5 % 2 == 0
    temperature = torch.linspace(-1, 2, channels, device=device) if heated else None
    return {"reduce": reduce, "offset": 0.1 * (number % 3), "temperature": temperature}


def _all_messages(device: str) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[object, ...]]]:
    yield from sample_messages(device)
    yield from sample_messages(device, GATED_ACTIVATIONS)


def sample_messages(
    device: str, activations: tuple[str, ...] = PLAIN_ACTIVATIONS
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[object, ...]]]:
    """(x, rowptr, src, what follows them up to the slope) of every kind of message."""
    gated = activations == GATED_ACTIVATIONS
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    widths = [10, 128, 14, 2, 80, 6, 36, 64] if gated else [5, 64, 7, 1, 40, 128, 16, 100] * 2
    for i, channels in enumerate(widths):
        rows, rowptr, src = graphs[(i + i // 8) % len(graphs)]
        num_rows, edges = rowptr.shape[0] - 1, src.shape[0]
        perm = torch.randperm(edges, generator=generator).to(device, rowptr.dtype)
        features = (channels, 6, channels, 40)[i % 4]
        edge = rand(edges, features) if i % 3 else None
        weight = rand(channels, features) if edge is not None and i % 2 else None
        parts = (
            perm,
            rand(num_rows, channels) if i % 4 else None,
            edge,
            weight,
            rand(channels) if weight is not None and i % 4 == 1 else None,
            activations[i % len(activations)],
            0.2,
        )
        yield rand(rows, channels), rowptr, src, parts


def quantized_aggregate_messages_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    """Codes `x` [S, C packed] of `channels`; all else as in `aggregate_messages`: [N, C].

    Codes of `out_bits` come out where `out_scale` is given.
    """
    values = scale * (unpack(x, channels, bits).int() - zero_point).float()
    rows = aggregate_messages_reference(
        *(values, rowptr, src, perm, x_dst, edge, edge_weight, edge_bias),
        *(message_activation, slope, reduce, offset, temperature, bias, residual, activation),
    )
    return finish(
        *(rows, None, None, None, None, None, "none"), *(out_scale, out_zero_point, out_bits)
    )


def quantized_aggregate_messages_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    check_codes(x, channels, bits)
    num_rows = rowptr.shape[0] - 1
    check_messages(
        *(channels, rowptr, src, perm, x_dst, edge, edge_weight, edge_bias),
        *(message_activation, reduce),
    )
    qparams = out_scale, out_zero_point, out_bits
    channels = reduced_channels(channels, message_activation)
    _check_temperature(temperature, channels, reduce)
    check_epilogue(num_rows, channels, None, bias, residual, activation, *qparams)
    return empty_result(x, num_rows, channels, out_scale, out_bits)


def quantized_aggregate_messages_cost(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Cost:
    """Each edge reads a row of codes and of its own features; rows are written once."""
    cost = messages_cost(channels, x.shape[1], src, edge, edge_weight)
    used = None if edge is None else perm
    read = num_bytes(rowptr, used, x_dst, edge_bias, temperature, bias, residual)
    read += num_bytes(scale, zero_point, out_scale, out_zero_point)
    reduced = reduced_channels(channels, message_activation)
    written = result_bytes(rowptr.shape[0] - 1, reduced, out_scale, out_bits)
    return Cost(cost.flops, cost.bytes + read + written, cost.gathered)


def quantized_aggregate_messages_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(4)
    for i, (x, rowptr, src, parts) in enumerate(_all_messages(device)):
        bits = (8, 8, 4)[i % 3]
        low, high = code_range(bits)
        codes = torch.randint(low, high + 1, x.shape, generator=generator, dtype=torch.int8)
        yield arguments(
            quantized_aggregate_messages_reference,
            pack(codes, bits).to(device),
            *sample_qparams(0.043, (0, 1, high)[i % 3], device),
            *(x.shape[1], rowptr, src, *parts),
            **_reduction(i, reduced_channels(x.shape[1], str(parts[-2])), device),
            **_codes_out(i, device),
            bits=bits,
            out_bits=(8, 4, 2)[i % 3],
        )


def _codes_out(number: int, device: str) -> dict[str, Tensor]:
    """Scale and zero point of the result of every other sample."""
    if number % 2 == 0:
        return {}
    out_scale, out_zero_point = sample_qparams(0.31, (0, 1, -3)[number % 3], device)
    return {"out_scale": out_scale, "out_zero_point": out_zero_point}


AGGREGATE_MESSAGES = register(
    OpDef(
        name="aggregate_messages",
        reference=aggregate_messages_reference,
        fake=aggregate_messages_fake,
        cost=aggregate_messages_cost,
        samples=aggregate_messages_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_messages_numba", "aggregate_messages"),
            triton_impl("gnnfx.kernels.aggregate_messages_triton", "aggregate_messages"),
        ),
        differentiable=True,
    )
)
QUANTIZED_AGGREGATE_MESSAGES = register(
    OpDef(
        name="quantized_aggregate_messages",
        reference=quantized_aggregate_messages_reference,
        fake=quantized_aggregate_messages_fake,
        cost=quantized_aggregate_messages_cost,
        samples=quantized_aggregate_messages_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_messages_numba", "quantized_aggregate_messages"),
            triton_impl("gnnfx.kernels.aggregate_messages_triton", "quantized_aggregate_messages"),
        ),
    )
)
