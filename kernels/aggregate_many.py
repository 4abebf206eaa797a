"""Several reductions over incoming edges at once: each row of x is read once for all of them.

    m[e] = x[src[e]] [+ x_dst[i]] [+ edge[perm[e]]]
    y[i] = [r1 of m, r2 of m, ...] over the edges e into node i

`reduces` names the reductions with commas between, in the order of the channels of y: sum, mean,
min, max, var (mean of squares minus square of the mean) and std, which is the square root of var
but 0 where that is at most sqrt(1e-5), as PyG's standard deviation is.  A node without edges
gets 0.  What is added to every message of a node moves out of the reduction, so `x_dst` is read
once a node.  `edge` holds features in the order of the user's edge list; with `edge_weight` [C, D]
they are [E, D] and pass a linear layer first.  `quantized_aggregate_many` takes codes for x and,
without features of edges, reduces them exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import (
    arguments,
    check_csr,
    degrees,
    num_bytes,
    row_of_edge,
    sample_graphs,
    sample_large_graph,
)
from gnnfx.kernels.epilogue import check_epilogue, empty_result, result_bytes
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import (
    check_codes,
    code_range,
    pack,
    sample_qparams,
    to_codes,
    unpack,
)

MANY_REDUCES = ("sum", "mean", "min", "max", "var", "std")
LEAST_VARIANCE = 1e-5
LEAST_STD = LEAST_VARIANCE**0.5
_TORCH_REDUCE = {"min": "amin", "max": "amax"}


def names_of(reduces: str) -> list[str]:
    """The reductions that `reduces` names, in order; raises ValueError for others."""
    names = reduces.split(",")
    if not set(names) <= set(MANY_REDUCES) or len(set(names)) != len(names):
        raise ValueError(f"reduces must name some of {MANY_REDUCES} once each, got {reduces!r}")
    return names


def _extreme(messages: Tensor, rows: Tensor, num_rows: int, reduce: str) -> Tensor:
    out = messages.new_zeros((num_rows, messages.shape[1]))
    wide = rows[:, None].expand_as(messages)
    return out.scatter_reduce(0, wide, messages, _TORCH_REDUCE[reduce], include_self=False)


def _std(var: Tensor) -> Tensor:
    std = var.clamp(min=LEAST_VARIANCE).sqrt()
    return std.masked_fill(std <= LEAST_STD, 0.0)


def aggregate_many_reference(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
) -> Tensor:
    """float32 `x` [S, C], `x_dst` [N, C], `edge` [E, C] or [E, D]: [N, R * C] for R reductions."""
    num_rows, rows = rowptr.shape[0] - 1, row_of_edge(rowptr, src.shape[0])
    messages = x.index_select(0, src)
    if x_dst is not None:
        messages = messages + x_dst.index_select(0, rows)
    if edge is not None and perm is not None:
        messages = messages + features_of_edges(perm, edge, edge_weight, edge_bias)
    degree = degrees(rowptr)[:, None]

    def sum_of(values: Tensor) -> Tensor:
        return values.new_zeros((num_rows, x.shape[1])).index_add(0, rows, values)

    # A variance is a small difference of large numbers: float64 keeps it.
    wide = messages.double()
    mean = sum_of(wide) / degree
    var = (sum_of(wide * wide) / degree - mean * mean).clamp(min=0).float()
    results = {"sum": sum_of(messages), "mean": mean.float(), "var": var, "std": _std(var)}
    for reduce in ("min", "max"):
        results[reduce] = _extreme(messages, rows, num_rows, reduce)
    return torch.cat([results[name] for name in names_of(reduces)], 1)


def aggregate_many_fake(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
) -> Tensor:
    check_csr(rowptr, src)
    if x.dtype != torch.float32 or x.dim() != 2:
        raise ValueError(f"x must be float32 [S, C], got {x.dtype} {tuple(x.shape)}")
    num_rows, channels = rowptr.shape[0] - 1, x.shape[1]
    check_destination(num_rows, channels, x_dst)
    check_features(src, channels, perm, edge, edge_weight, edge_bias)
    return x.new_empty((num_rows, len(names_of(reduces)) * channels))


def features_of_edges(
    perm: Tensor, edge: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """What edges add to their messages [E, C], in the order of destinations, for references."""
    own = edge.index_select(0, perm)
    return own if weight is None else functional.linear(own, weight, bias)


def check_features(
    src: Tensor,
    channels: int,
    perm: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise ValueError unless features of edges, with their order and layer, fit `channels`."""
    width = channels
    if weight is not None:
        if edge is None or weight.dim() != 2 or weight.shape[0] != channels:
            raise ValueError(
                f"edge_weight must be [{channels}, D] for edges of D channels, "
                f"got {tuple(weight.shape)}"
            )
        width = weight.shape[1]
    if edge is not None:
        if perm is None or perm.shape != src.shape:
            raise ValueError(f"perm must be {tuple(src.shape)}, the order of the edges")
        if tuple(edge.shape) != (src.shape[0], width):
            raise ValueError(f"edge must be {(src.shape[0], width)}, got {tuple(edge.shape)}")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"edge_bias must be {(channels,)}, got {tuple(bias.shape)}")


def check_destination(num_rows: int, channels: int, x_dst: Tensor | None) -> None:
    """Raise ValueError unless `x_dst` is None or a row of floats for each destination."""
    if x_dst is None:
        return
    if x_dst.dtype != torch.float32 or tuple(x_dst.shape) != (num_rows, channels):
        got = f"{x_dst.dtype} {tuple(x_dst.shape)}"
        raise ValueError(f"x_dst must be float32 {(num_rows, channels)}, got {got}")


def aggregate_many_cost(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
) -> Cost:
    """Each edge reads a row of x and does an operation a channel and reduction."""
    num_rows, edges, count = rowptr.shape[0] - 1, src.shape[0], len(names_of(reduces))
    channels = x.shape[1]
    gathered = 4 * channels * edges
    moved = gathered + 4 * channels * num_rows * count + num_bytes(rowptr, src, x_dst)
    flops = edges * channels * count + _edge_flops(edges, edge, edge_weight)
    return Cost(flops, moved + num_bytes(perm, edge, edge_weight, edge_bias), gathered)


def _edge_flops(edges: int, edge: Tensor | None, weight: Tensor | None) -> int:
    if weight is not None:
        return 2 * edges * weight.numel()
    return 0 if edge is None else edge.numel()


_SAMPLED = ("mean,min,max,std", "max", "var,sum")


def aggregate_many_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    for i, channels in enumerate([5, 64, 7, 1, 40, 128, 16, 100] * 2):
        rows, rowptr, src = graphs[(i + i // 8) % len(graphs)]
        x_dst = rand(rowptr.shape[0] - 1, channels) if i % 3 else None
        reduces = _SAMPLED[i % len(_SAMPLED)]
        yield arguments(
            *(aggregate_many_reference, rand(rows, channels), rowptr, src, reduces, x_dst),
            *_sample_edges(i, channels, rowptr, src, generator),
        )


def _sample_edges(
    number: int, channels: int, rowptr: Tensor, src: Tensor, generator: torch.Generator
) -> tuple[Tensor | None, ...]:
    """No features of edges; as many as channels; few or many that pass a layer."""
    device, edges, kind = src.device, src.shape[0], (number + number // 4) % 4
    if kind == 0:
        return None, None, None, None

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    perm = torch.randperm(edges, generator=generator).to(device, rowptr.dtype)
    if kind == 1:
        return perm, rand(edges, channels), None, None
    width = (6, 40)[kind - 2]
    bias = rand(channels) if number % 2 else None
    return perm, rand(edges, width), rand(channels, width), bias


def quantized_aggregate_many_reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    """Codes `x` [S, C packed] of `channels`, float32 `x_dst` [N, C]: [N, R * C], floats or codes.

    Without features of edges, sums of steps q - zero_point and of their squares are exact.
    """
    if edge is not None:
        values = scale * (unpack(x, channels, bits).int() - zero_point).float()
        parts = (reduces, x_dst, perm, edge, edge_weight, edge_bias)
        y = aggregate_many_reference(values, rowptr, src, *parts)
        return _codes(y, out_scale, out_zero_point, out_bits)
    num_rows, rows = rowptr.shape[0] - 1, row_of_edge(rowptr, src.shape[0])
    steps = (unpack(x, channels, bits).long() - zero_point).index_select(0, src)
    count = (rowptr[1:] - rowptr[:-1]).long()[:, None]
    degree = count.clamp(min=1)

    def sum_of(values: Tensor) -> Tensor:
        return values.new_zeros((num_rows, channels)).index_add(0, rows, values)

    total = sum_of(steps)
    spread = degree * sum_of(steps * steps) - total * total
    var = spread.float() / (degree * degree).float() * (scale * scale)
    results = {"var": var, "std": _std(var)}
    sums = {"sum": total.float(), "mean": total.float() / degree.float()}
    sums |= {name: _extreme(steps, rows, num_rows, name).float() for name in ("min", "max")}
    for name, value in sums.items():
        own = torch.zeros_like(value) if x_dst is None else x_dst.where(count > 0, 0.0)
        results[name] = value * scale + (own * count.float() if name == "sum" else own)
    y = torch.cat([results[name] for name in names_of(reduces)], 1)
    return _codes(y, out_scale, out_zero_point, out_bits)


def _codes(y: Tensor, scale: Tensor | None, zero_point: Tensor | None, bits: int) -> Tensor:
    """`y` as codes where there is a scale."""
    if scale is None or zero_point is None:
        return y
    return pack(to_codes(y, scale, zero_point, bits), bits)


def quantized_aggregate_many_fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    check_csr(rowptr, src)
    check_codes(x, channels, bits)
    if x.dim() != 2:
        raise ValueError(f"x must be codes [S, C], got {tuple(x.shape)}")
    num_rows, width = rowptr.shape[0] - 1, len(names_of(reduces)) * channels
    check_destination(num_rows, channels, x_dst)
    check_features(src, channels, perm, edge, edge_weight, edge_bias)
    check_epilogue(num_rows, width, None, None, None, "none", out_scale, out_zero_point, out_bits)
    return empty_result(x, num_rows, width, out_scale, out_bits)


def quantized_aggregate_many_cost(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    rowptr: Tensor,
    src: Tensor,
    channels: int,
    reduces: str,
    x_dst: Tensor | None = None,
    perm: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Cost:
    """Each edge reads a row of codes and does an operation a channel and reduction."""
    num_rows, edges, count = rowptr.shape[0] - 1, src.shape[0], len(names_of(reduces))
    read = num_bytes(rowptr, src, x_dst, scale, zero_point, out_scale, out_zero_point)
    written = result_bytes(num_rows, count * channels, out_scale, out_bits)
    read += num_bytes(perm, edge, edge_weight, edge_bias)
    gathered = edges * x.shape[1]
    flops = edges * channels * count + _edge_flops(edges, edge, edge_weight)
    return Cost(flops, gathered + read + written, gathered)


def quantized_aggregate_many_samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def codes(bits: int, *shape: int) -> Tensor:
        low, high = code_range(bits)
        values = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
        return pack(values, bits).to(device)

    graphs = [*sample_graphs(device), sample_large_graph(device)]
    for i, channels in enumerate([5, 64, 7, 1, 40, 128, 16, 100] * 3):
        rows, rowptr, src = graphs[(i + i // 8) % len(graphs)]
        num_rows, bits = rowptr.shape[0] - 1, (8, 8, 4)[i % 3]
        out_scale, out_zero_point = sample_qparams(0.31, (0, 5, -2)[i % 3], device)
        yield arguments(
            quantized_aggregate_many_reference,
            codes(bits, rows, channels),
            *sample_qparams(0.043, (0, 1, code_range(bits)[i % 2])[i % 3], device),
            rowptr,
            src,
            channels,
            _SAMPLED[i % len(_SAMPLED)],
            torch.randn(num_rows, channels, generator=generator).to(device) if i % 4 else None,
            *_sample_edges(i, channels, rowptr, src, generator),
            out_scale if i % 2 else None,
            out_zero_point if i % 2 else None,
            bits=bits,
            out_bits=(8, 8, 4)[i % 3],
        )


AGGREGATE_MANY = register(
    OpDef(
        name="aggregate_many",
        reference=aggregate_many_reference,
        fake=aggregate_many_fake,
        cost=aggregate_many_cost,
        samples=aggregate_many_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_many_numba", "aggregate_many"),
            triton_impl("gnnfx.kernels.aggregate_many_triton", "aggregate_many"),
        ),
        differentiable=True,
    )
)
QUANTIZED_AGGREGATE_MANY = register(
    OpDef(
        name="quantized_aggregate_many",
        reference=quantized_aggregate_many_reference,
        fake=quantized_aggregate_many_fake,
        cost=quantized_aggregate_many_cost,
        samples=quantized_aggregate_many_samples,
        impls=(
            numba_impl("gnnfx.kernels.aggregate_many_numba", "quantized_aggregate_many"),
            triton_impl("gnnfx.kernels.aggregate_many_triton", "quantized_aggregate_many"),
        ),
    )
)
