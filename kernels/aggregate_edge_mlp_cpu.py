"""CPU code of `aggregate_edge_mlp`: tiles of edges through one matrix product after the other.

The hidden values of a tile, floats or codes, and its messages stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gnnfx.kernels.aggregate_messages_numba import (
    Messages,
    Reduction,
    reject_messages,
    tile_edges,
    tiles,
    write_messages,
)
from gnnfx.kernels.epilogue_numba import Epilogue
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.linear_cpu import Layer, multiply, prepared
from gnnfx.kernels.memory import empty


def _aggregate(
    messages: Messages,
    reduction: Reduction,
    width: int,
    qparams: tuple[Tensor, Tensor] | None,
    multiply: Callable[[Tensor], Tensor],
) -> None:
    """Reduce the products of the hidden values, codes of them where there are `qparams`."""
    size = tile_edges(width)
    channels, dtype = messages.x.shape[1], torch.float32 if qparams is None else torch.int8
    memory = empty((min(size, messages.num_edges), channels), dtype)
    for tile in tiles(messages.rowptr, messages.num_edges, size):
        hidden = memory[: tile.last_edge - tile.first_edge]
        write_messages(messages, tile, hidden, qparams)
        reduction.add(messages, tile, multiply(hidden), reads_x=False)


def reject_aggregate_edge_mlp(
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
) -> str | None:
    return reject_messages(
        rowptr, src, x=x, x_dst=x_dst, edge=edge, bias=bias, residual=residual, perm=perm
    )


def aggregate_edge_mlp(
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
    out = empty((rowptr.shape[0] - 1, weight.shape[0]))
    if out.numel():
        messages = Messages(
            x, rowptr, src, perm, x_dst, edge, None, None, message_activation, slope
        )

        def multiply(hidden: Tensor) -> Tensor:
            product: Tensor = LINEAR.run(hidden, weight, linear_bias)
            return product

        reduction = Reduction(out, reduce, Epilogue(None, bias, residual, activation))
        _aggregate(messages, reduction, max(weight.shape), None, multiply)
    return out


def reject_quantized_aggregate_edge_mlp(
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
) -> str | None:
    return reject_messages(
        rowptr, src, x=x, x_dst=x_dst, edge=edge, bias=bias, residual=residual, perm=perm
    )


def quantized_aggregate_edge_mlp(
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
    out = empty((rowptr.shape[0] - 1, weight.shape[0]))
    if out.numel():
        messages = Messages(
            x, rowptr, src, perm, x_dst, edge, None, None, message_activation, slope
        )
        codes = prepared(weight, x.shape[1], weight_bits)
        zero_point, multiplier = int(hidden_zero_point), hidden_scale * weight_scale
        width = max(x.shape[1], weight.shape[0])
        epilogue = Epilogue(bias=linear_bias)
        memory = empty((min(tile_edges(width), messages.num_edges), len(weight)))

        def multiplied(hidden: Tensor) -> Tensor:
            product = memory[: len(hidden)]
            multiply([Layer(codes, hidden, zero_point, multiplier)], product, epilogue)
            return product

        reduction = Reduction(out, reduce, Epilogue(None, bias, residual, activation))
        qparams = (hidden_scale, hidden_zero_point)
        _aggregate(messages, reduction, width, qparams, multiplied)
    return out
