"""Sum of aggregations, each with a linear layer of its own: GraphSAGE and RGCN in floats.

y = act(sum over t of reduce_t(x_t) @ W_t.T + own @ V.T + bias + residual), where reduce_t sums or
averages rows of x_t over the edges of relation t, and own has a row of each node itself.  Most
nodes of a sampled graph have no edges into them, and a node seldom has edges of every relation:
each term multiplies the rows of nodes that have some, before or after they are reduced, whichever
takes less for the graph at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, accept, register
from gnnfx.kernels.aggregate import AGGREGATE, aggregate_fake, aggregate_reference
from gnnfx.kernels.csr import arguments, num_bytes, sample_graphs, sample_large_graph
from gnnfx.kernels.epilogue import activate, check_epilogue
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.launch import lazy_impl


def reference(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
) -> Tensor:
    """float32 `x[t]` [S_t, K_t], `weight[t]` [O, K_t], `bias` [O], `residual` [N, O]: [N, O].

    `reduce` is sum or mean; `own` [N, L] and `own_weight` [O, L] come together or not at all.
    """
    terms = zip(x, rowptr, src, weight, strict=True)
    rows = [aggregate_reference(v, r, s, None, reduce) @ w.t() for v, r, s, w in terms]
    if own is not None and own_weight is not None:
        rows.append(own @ own_weight.t())
    total = torch.stack(rows).sum(0)
    for term in (bias, residual):
        total = total if term is None else total + term
    return activate(total, activation)


def fake(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
) -> Tensor:
    if not x or len({len(x), len(rowptr), len(src), len(weight)}) > 1:
        counts = [len(operand) for operand in (x, rowptr, src, weight)]
        raise ValueError(f"every term needs all its operands, got {counts}")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce must be sum or mean, got {reduce!r}")
    rows, outputs = rowptr[0].shape[0] - 1, weight[0].shape[0]
    for v, r, s, w in zip(x, rowptr, src, weight, strict=True):
        aggregated = aggregate_fake(v, r, s, None, reduce)
        if v.dim() != 2 or tuple(w.shape) != (outputs, v.shape[1]):
            got = f"{tuple(v.shape)} and {tuple(w.shape)}"
            raise ValueError(f"x must be [S, K] and weight [{outputs}, K], got {got}")
        if aggregated.shape[0] != rows:
            raise ValueError(f"every rowptr must be of {rows} rows, got {aggregated.shape[0]}")
    if own is not None or own_weight is not None:
        channels = None if own is None or own.dim() != 2 else own.shape[1]
        shapes = tuple(None if t is None else tuple(t.shape) for t in (own, own_weight))
        if shapes != ((rows, channels), (outputs, channels)):
            raise ValueError(f"own must be [{rows}, L] and own_weight [{outputs}, L], got {shapes}")
    check_epilogue(rows, outputs, None, bias, residual, activation)
    return x[0].new_empty((rows, outputs))


def cost(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
) -> Cost:
    """Each edge reads a row; rows that have edges, at most as many as edges, are multiplied."""
    rows, outputs = rowptr[0].shape[0] - 1, weight[0].shape[0]
    flops = gathered = 0
    for v, s, w in zip(x, src, weight, strict=True):
        edges, channels = s.shape[0], v.shape[1]
        flops += edges * channels + 2 * min(edges, rows) * channels * w.shape[0]
        gathered += 4 * edges * channels
    if own_weight is not None:
        flops += 2 * rows * own_weight.numel()
    read = num_bytes(*rowptr, *src, *weight, bias, residual, own, own_weight)
    return Cost(flops, gathered + read + 4 * rows * outputs, gathered)


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    for i, graph in enumerate([*sample_graphs(device), sample_large_graph(device)]):
        num_src, rowptr, src = graph
        rows = rowptr.shape[0] - 1
        outputs, widths = ((5, (3, 8)), (16, (40, 1)), (64, (16, 64)))[i % 3]
        # One relation whose edges all go into the first node, and one without edges.
        hub = torch.full_like(rowptr, len(src))
        hub[0] = 0
        none = torch.zeros_like(rowptr)
        pointers = [rowptr, hub if rows else rowptr, none]
        yield arguments(
            reference,
            [rand(num_src, widths[0]), rand(num_src, widths[1]), rand(num_src, 4)],
            pointers,
            [src, src, src[:0]],
            [rand(outputs, widths[0]), rand(outputs, widths[1]), rand(outputs, 4)],
            reduce=("sum", "mean")[i % 2],
            bias=rand(outputs) if i % 2 else None,
            residual=rand(rows, outputs) if i % 3 else None,
            activation=("none", "relu", "elu")[i % 3],
            own=rand(rows, 3) if i % 4 < 2 else None,
            own_weight=rand(outputs, 3) if i % 4 < 2 else None,
        )
    rows, rowptr, src = sample_large_graph(device)
    nodes = rowptr.shape[0] - 1
    for i, (channels, outputs) in enumerate([(20, 32), (40, 48), (33, 100), (50, 120), (300, 300)]):
        yield arguments(
            reference,
            *([rand(rows, channels)], [rowptr], [src], [rand(outputs, channels)], "mean"),
            bias=rand(outputs),
            residual=rand(nodes, outputs) if i == 1 else None,
            activation="relu" if i else "none",
            own=rand(nodes, 50),
            own_weight=rand(outputs, 50),
        )


def all_rows(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor,
    reduce: str,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    multiplies_first: bool,
) -> Tensor:
    """One term, added to `residual` and finished, on all rows."""
    if multiplies_first:
        rows = LINEAR.run(x, weight)
        finish = None, None, bias, residual, activation
        return cast(Tensor, AGGREGATE.run(rows, rowptr, src, None, reduce, *finish))
    rows = AGGREGATE.run(x, rowptr, src, None, reduce)
    return cast(Tensor, LINEAR.run(rows, weight, bias, residual, activation))


def in_turn(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    own: Tensor | None = None,
    own_weight: Tensor | None = None,
) -> Tensor:
    """The terms in turn, on all rows: which have edges would have to come from the GPU first."""
    terms = list(zip(x, rowptr, src, weight, strict=True))
    if own is not None:
        residual = LINEAR.run(own, own_weight, None, residual)
    for v, r, s, w in terms[:-1]:
        first = w.shape[0] < w.shape[1]
        residual = all_rows(v, r, s, w, reduce, None, residual, "none", first)
    first = weight[-1].shape[0] < weight[-1].shape[1]
    return all_rows(*terms[-1], reduce, bias, residual, activation, first)


AGGREGATE_LINEAR_SUM = register(
    OpDef(
        "aggregate_linear_sum",
        reference,
        fake,
        cost,
        samples,
        impls=(
            lazy_impl("blocks", "cpu", "gnnfx.kernels.aggregate_linear_sum_numba", "blocks"),
            lazy_impl("by-rows", "cpu", "gnnfx.kernels.aggregate_linear_sum_cpu", "by_rows"),
            Impl("in-turn", "cuda", in_turn, accept),
        ),
        differentiable=True,
    )
)
