"""Sum of aggregations, each with a linear layer of its own: GraphSAGE and RGCN in floats.

y = act(sum over t of reduce_t(x_t) @ W_t.T + bias + residual), where reduce_t sums or averages
rows of x_t over the edges of relation t.  Most nodes of a sampled graph have no edges into them,
and a node seldom has edges of every relation: each term multiplies the rows of nodes that have
some, before or after they are reduced, whichever takes less for the graph at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, accept, register
from gnnfx.kernels.aggregate import AGGREGATE, aggregate_fake, aggregate_reference
from gnnfx.kernels.csr import arguments, num_bytes, sample_graphs, sample_large_graph
from gnnfx.kernels.epilogue import activate, activate_in_place, check_epilogue
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.memory import empty

# From this share of rows on, leaving out the others costs more than multiplying them.
_MANY = 0.7
# A value read in the order of an index takes about as long as so many multiply-adds.
_MULTIPLICATIONS_A_READ = 10


def reference(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """float32 `x[t]` [S_t, K_t], `weight[t]` [O, K_t], `bias` [O], `residual` [N, O]: [N, O].

    `reduce` is sum or mean.
    """
    terms = zip(x, rowptr, src, weight, strict=True)
    rows = [aggregate_reference(v, r, s, None, reduce) @ w.t() for v, r, s, w in terms]
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
) -> Cost:
    """Each edge reads a row; rows that have edges, at most as many as edges, are multiplied."""
    rows, outputs = rowptr[0].shape[0] - 1, weight[0].shape[0]
    flops = gathered = 0
    for v, s, w in zip(x, src, weight, strict=True):
        edges, channels = s.shape[0], v.shape[1]
        flops += edges * channels + 2 * min(edges, rows) * channels * w.shape[0]
        gathered += 4 * edges * channels
    read = num_bytes(*rowptr, *src, *weight, bias, residual)
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
        )


def by_rows(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The terms in turn, each on the rows that have edges of its relation if these are few."""
    rows, outputs = rowptr[0].shape[0] - 1, weight[0].shape[0]
    total, owned = residual, False
    for number, (v, r, s, w) in enumerate(zip(x, rowptr, src, weight, strict=True), 1):
        used = (r[1:] > r[:-1]).nonzero().view(-1)
        if len(used) > _MANY * rows:
            first = _multiplies_first(len(v) - len(used), len(s), w)
            if number == len(x):
                return _all_rows(v, r, s, w, reduce, bias, total, activation, first)
            total, owned = _all_rows(v, r, s, w, reduce, None, total, "none", first), True
            continue
        if total is None or not owned:
            out = empty((rows, outputs))
            total, owned = out.zero_() if total is None else out.copy_(total), True
        if len(s):
            _add_rows(total, used, v, r, s, w, reduce)
    assert total is not None
    total = total if bias is None else total.add_(bias)
    return activate_in_place(total, activation)


def _multiplies_first(more_rows: int, edges: int, weight: Tensor) -> bool:
    """Whether fewer channels to read for each edge are worth so many more rows to multiply."""
    outputs, channels = weight.shape
    saved = _MULTIPLICATIONS_A_READ * edges * (channels - outputs)
    return more_rows * outputs * channels < saved


def _all_rows(
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


def _add_rows(
    total: Tensor,
    used: Tensor,
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    weight: Tensor,
    reduce: str,
) -> None:
    """Add one term to the rows `used` of `total`, those that have edges.

    Rows without edges have no part of `src`, so the others are a smaller CSR by themselves.
    """
    ends = torch.cat([rowptr.index_select(0, used), rowptr[-1:]])
    sums = total.index_select(0, used)
    first = _multiplies_first(len(x) - len(used), len(src), weight)
    total.index_copy_(0, used, _all_rows(x, ends, src, weight, reduce, None, sums, "none", first))


def in_turn(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The terms in turn, on all rows: which have edges would have to come from the GPU first."""
    terms = list(zip(x, rowptr, src, weight, strict=True))
    for v, r, s, w in terms[:-1]:
        first = w.shape[0] < w.shape[1]
        residual = _all_rows(v, r, s, w, reduce, None, residual, "none", first)
    first = weight[-1].shape[0] < weight[-1].shape[1]
    return _all_rows(*terms[-1], reduce, bias, residual, activation, first)


AGGREGATE_LINEAR_SUM = register(
    OpDef(
        "aggregate_linear_sum",
        reference,
        fake,
        cost,
        samples,
        impls=(Impl("by-rows", "cpu", by_rows, accept), Impl("in-turn", "cuda", in_turn, accept)),
        differentiable=True,
    )
)
