"""aggregate and quantized_aggregate: reduce source rows into destination rows over CSR.

    y[i] = act(row_scale[i] * S[i] + self_weight * x[i] + bias + residual[i])
    S[i] = reduce over the edges e of row i of weight[e] * x[src[e]]

Rows without edges reduce to 0; mean divides by the number of edges.  With codes, S is an exact
integer sum of (code - zero_point), scaled once a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.launch import numba_impl
from gnnfx.kernels.quantize import code_range, pack, packed_width, to_codes, unpack

REDUCES = ("sum", "mean", "max", "min")
ACTIVATIONS = ("none", "relu")
_AMAX = {"max": "amax", "min": "amin"}


def edge_rows(rowptr: Tensor) -> Tensor:
    """Destination of each edge [E], from the row pointers."""
    rows = torch.arange(rowptr.shape[0] - 1, device=rowptr.device)
    return rows.repeat_interleave((rowptr[1:] - rowptr[:-1]).long())


def reduce_rows(messages: Tensor, rowptr: Tensor, reduce: str) -> Tensor:
    """Sum, maximum or minimum of the messages [E, ...] of each row; 0 where there are none."""
    shape = (rowptr.shape[0] - 1, *messages.shape[1:])
    dst = edge_rows(rowptr)
    if reduce in ("sum", "mean"):
        return messages.new_zeros(shape).index_add(0, dst, messages)
    wide = dst.view(-1, *(1,) * (messages.dim() - 1)).expand_as(messages)
    out = messages.new_zeros(shape)
    return out.scatter_reduce(0, wide, messages, _AMAX[reduce], include_self=False)


def degrees(rowptr: Tensor, like: Tensor) -> Tensor:
    """Number of edges of each row, at least 1, shaped to divide `like` [N, ...]."""
    count = (rowptr[1:] - rowptr[:-1]).clamp(min=1).float()
    return count.view(-1, *(1,) * (like.dim() - 1))


def epilogue(
    y: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Bias, residual and activation of rows `y` [N, C], in this order."""
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + residual
    return y.clamp(min=0) if activation == "relu" else y


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
    """Rows [N, C] or [N, H, C] from rows `x` [S, C] or [S, H, C]; weight [E] or [E, H]."""
    messages = x.index_select(0, src)
    if weight is not None:
        messages = messages * weight.view(*weight.shape, *(1,) * (x.dim() - weight.dim()))
    y = reduce_rows(messages, rowptr, reduce)
    if reduce == "mean":
        y = y / degrees(rowptr, y)
    if row_scale is not None:
        y = y * row_scale[:, None]
    if self_weight is not None:
        y = y + self_weight * x[: y.shape[0]]
    return epilogue(y, bias, residual, activation)


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
    if x.dim() not in (2, 3) or not x.is_floating_point():
        raise ValueError(f"x must be floats [S, C] or [S, H, C], got {x.dtype} {tuple(x.shape)}")
    if weight is not None and not 1 <= weight.dim() < x.dim():
        raise ValueError(f"weight must be [E] or [E, H], got {tuple(weight.shape)}")
    _check_epilogue(x, reduce, row_scale, self_weight, bias, residual, activation)
    return x.new_empty((rowptr.shape[0] - 1, *x.shape[1:]))


def _check_epilogue(
    x: Tensor,
    reduce: str,
    row_scale: Tensor | None,
    self_weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> None:
    if reduce not in REDUCES:
        raise ValueError(f"reduce must be one of {REDUCES}, got {reduce!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    extras = (row_scale, self_weight, bias, residual)
    if x.dim() != 2 and (activation != "none" or any(e is not None for e in extras)):
        raise ValueError("an epilogue takes rows [N, C] only")
    for name, value, rank in (("row_scale", row_scale, 1), ("self_weight", self_weight, 0),
                              ("bias", bias, 1), ("residual", residual, 2)):
        if value is not None and value.dim() != rank:
            raise ValueError(f"{name} must have {rank} dimensions, got {tuple(value.shape)}")


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
    """An operation (two with weights) an edge and channel; each edge reads a row, each node writes."""
    width = x[0].numel() if x.shape[0] else 0
    edges, rows = src.numel(), rowptr.shape[0] - 1
    inputs = (rowptr, src, weight, row_scale, bias, residual)
    read = edges * width * x.element_size() + sum(t.nbytes for t in inputs if t is not None)
    own = rows * width * x.element_size() if self_weight is not None else 0
    flops = edges * width * (1 if weight is None else 2)
    return Cost(flops, read + own + rows * width * 4)


Graph = tuple[Tensor, Tensor]


def sample_graphs() -> Iterator[tuple[int, Tensor, Tensor]]:
    """(nodes, rowptr, src): ragged, edgeless, one node, a hub, duplicates and self-loops."""
    from gnnfx.kernels.compress import reference as compress

    generator = torch.Generator().manual_seed(1)
    for nodes, edges in [(7, 19), (4, 0), (1, 3), (33, 400), (90, 700)]:
        src = torch.randint(nodes, (edges,), generator=generator)
        dst = torch.randint(nodes, (edges,), generator=generator)
        dst[: edges // 2] = nodes // 2
        rowptr, by_dst, _ = compress(src, dst, nodes)
        yield nodes, rowptr, by_dst


def aggregate_samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(2)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    for number, (nodes, rowptr, src) in enumerate(sample_graphs()):
        graph = (rowptr.to(device), src.to(device))
        for channels in (1, 5, 16, 40, 64, 128, 256)[number % 3 :]:
            x = rand(nodes, channels)
            weight, scale = rand(src.numel()), rand(nodes)
            bias, residual = rand(channels), rand(nodes, channels)
            for reduce in REDUCES:
                yield x, *graph, None, reduce
                yield x, *graph, weight, reduce
            own = torch.tensor(1.5, device=device)
            yield x, *graph, None, "sum", scale, own, bias, residual, "relu"
            yield x, *graph, weight, "mean", scale, None, bias, None, "none"
        heads = rand(nodes, 4, 8)
        yield heads, *graph, rand(src.numel(), 4), "sum"
        yield heads, *graph, None, "max"


# quantized_aggregate


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
    """Rows of codes `x` [S, C] reduced exactly, as floats or as codes of `out_scale`."""
    centered = unpack(x, channels, bits).long() - zero_point
    messages = centered.index_select(0, src)
    step = scale
    if weight is not None:
        messages = messages * weight.long()[:, None]
        step = scale * weight_scale
    y = reduce_rows(messages, rowptr, reduce).float()
    if reduce == "mean":
        y = y / degrees(rowptr, y)
    y = y * step if row_scale is None else y * (step * row_scale[:, None])
    if self_weight is not None:
        y = y + self_weight * (scale * centered[: y.shape[0]].float())
    y = epilogue(y, bias, residual, activation)
    if out_scale is None:
        return y
    return pack(to_codes(y, out_scale, out_zero_point, out_bits), out_bits)  # type: ignore[arg-type]


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
    check_codes("x", x, channels, bits)
    if weight is not None and (reduce not in ("sum", "mean") or weight.dtype != torch.int8):
        raise ValueError(f"int8 weights go with sum and mean, got {weight.dtype} and {reduce!r}")
    if (weight is None) != (weight_scale is None):
        raise ValueError("weight and weight_scale go together")
    _check_epilogue(x, reduce, row_scale, self_weight, bias, residual, activation)
    return rows_or_codes(x, rowptr.shape[0] - 1, channels, out_scale, out_zero_point, out_bits)


def check_codes(name: str, codes: Tensor, channels: int, bits: int) -> None:
    """Raise ValueError unless `codes` [R, ...] can hold `channels` codes of `bits` bits a row."""
    code_range(bits)
    wanted = torch.int8 if bits == 8 else torch.uint8
    if codes.dtype != wanted or codes.dim() != 2 or codes.shape[1] != packed_width(channels, bits):
        raise ValueError(
            f"{name} must be {wanted} [R, {packed_width(channels, bits)}] for {channels} channels "
            f"of {bits} bits, got {codes.dtype} {tuple(codes.shape)}"
        )


def rows_or_codes(
    like: Tensor,
    rows: int,
    channels: int,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_bits: int,
) -> Tensor:
    """An empty result: float rows, or codes where there is an output scale."""
    if (out_scale is None) != (out_zero_point is None):
        raise ValueError("out_scale and out_zero_point go together")
    if out_scale is None:
        return like.new_empty((rows, channels), dtype=torch.float32)
    dtype = torch.int8 if out_bits == 8 else torch.uint8
    return like.new_empty((rows, packed_width(channels, out_bits)), dtype=dtype)


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
    """As `aggregate`, with packed rows read and rows of codes or floats written."""
    edges, rows = src.numel(), rowptr.shape[0] - 1
    inputs = (rowptr, src, weight, row_scale, bias, residual)
    read = edges * x.shape[1] + sum(t.nbytes for t in inputs if t is not None)
    own = rows * x.shape[1] if self_weight is not None else 0
    written = 4 * channels if out_scale is None else packed_width(channels, out_bits)
    flops = edges * channels * (1 if weight is None else 2)
    return Cost(flops, read + own + rows * written)


def quantized_aggregate_samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def zero(value: int) -> Tensor:
        return torch.tensor(value, dtype=torch.int32, device=device)

    for number, (nodes, rowptr, src) in enumerate(sample_graphs()):
        graph = (rowptr.to(device), src.to(device))
        for bits in (8, 4, 2):
            for channels in (1, 5, 7, 32, 40, 64, 128, 256)[number % 4 :]:
                low, high = code_range(bits)
                codes = torch.randint(low, high + 1, (nodes, channels), generator=generator)
                x = pack(codes.to(torch.int8), bits).to(device)
                step, out = torch.tensor(0.05, device=device), torch.tensor(0.4, device=device)
                plain = (x, step, zero(0), *graph, channels)
                shifted = (x, step, zero(low), *graph, channels)
                weight = torch.randint(-127, 128, (src.numel(),), generator=generator)
                weights = (weight.to(torch.int8).to(device), torch.tensor(0.01, device=device))
                own, scale = torch.tensor(1.5, device=device), rand(nodes)
                bias, residual = rand(channels), rand(nodes, channels)
                none = (None, None)
                for reduce in REDUCES:
                    yield *shifted, *none, reduce, *(None,) * 4, "none", *none, bits
                yield *plain, *none, "sum", scale, *(None,) * 3, "none", out, zero(0), bits
                yield *plain, *weights, "sum", scale, own, bias, residual, "relu", *none, bits
                yield *shifted, *weights, "mean", *(None,) * 2, bias, None, "none", *none, bits
                yield (*shifted, *none, "sum", scale, own, bias, residual, "relu", out,
                       zero(-128), bits)
                yield *shifted, *none, "max", None, None, bias, None, "relu", out, zero(3), bits, 4
    yield _hub(device)


def _hub(device: str) -> tuple[Any, ...]:
    """A node of in-degree 100,000 whose neighbours all hold the lowest code."""
    edges = 100_000
    x = torch.full((2, 64), -128, dtype=torch.int8, device=device)
    rowptr = torch.tensor([0, edges, edges], dtype=torch.int32, device=device)
    src = torch.ones(edges, dtype=torch.int32, device=device)
    step = torch.tensor(0.05, device=device)
    return x, step, torch.tensor(127, dtype=torch.int32, device=device), rowptr, src, 64


_NUMBA = "gnnfx.kernels.aggregate_numba"

AGGREGATE = register(
    OpDef(
        "aggregate",
        aggregate_reference,
        aggregate_fake,
        aggregate_cost,
        aggregate_samples,
        impls=(numba_impl(_NUMBA, "aggregate"),),
        differentiable=True,
    )
)
QUANTIZED_AGGREGATE = register(
    OpDef(
        "quantized_aggregate",
        quantized_aggregate_reference,
        quantized_aggregate_fake,
        quantized_aggregate_cost,
        quantized_aggregate_samples,
        impls=(numba_impl(_NUMBA, "quantized_aggregate"),),
    )
)
