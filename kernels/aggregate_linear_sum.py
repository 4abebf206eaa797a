"""Sum of aggregations, each with a linear layer of its own: relational layers in floats.

y = act(sum over t of reduce_t(x_t) @ W_t.T + bias + residual), where reduce_t sums or averages
rows of x_t over the edges of relation t.  A node seldom has edges of every relation, so each term
multiplies the rows of nodes that have some: as few as there are edges, however many nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, register
from gnnfx.kernels.aggregate import AGGREGATE, aggregate_fake, aggregate_reference
from gnnfx.kernels.csr import arguments, num_bytes, sample_graphs, sample_large_graph
from gnnfx.kernels.epilogue import activate, check_epilogue
from gnnfx.kernels.memory import empty

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
    """The terms in turn, each added to the rows that have edges of its relation."""
    out = empty((rowptr[0].shape[0] - 1, weight[0].shape[0]))
    out.zero_() if residual is None else out.copy_(residual)
    if bias is not None:
        out += bias
    for term in zip(x, rowptr, src, weight, strict=True):
        _add(out, *term, reduce)
    return activate(out, activation)


def _add(out: Tensor, x: Tensor, rowptr: Tensor, src: Tensor, weight: Tensor, reduce: str) -> None:
    """Add one term to `out`, multiplying before or after its rows are reduced."""
    if not len(src):
        return
    used = (rowptr[1:] > rowptr[:-1]).nonzero().view(-1)
    every = len(used) == len(out)
    # Rows without edges have no part of `src`: those with edges are a smaller CSR.
    ends = rowptr if every else torch.cat([rowptr.index_select(0, used), rowptr[-1:]])
    outputs, channels = weight.shape
    more = (x.shape[0] - len(used)) * outputs * channels  # multiply-adds of all rows of x
    if more < _MULTIPLICATIONS_A_READ * len(src) * (channels - outputs):
        rows = AGGREGATE.run(x @ weight.t(), ends, src, None, reduce)
        if every:
            out += rows
        else:
            out.index_copy_(0, used, out.index_select(0, used).add_(rows))
        return
    rows = AGGREGATE.run(x, ends, src, None, reduce)
    if every:
        out.addmm_(rows, weight.t())
    else:
        out.index_copy_(0, used, out.index_select(0, used).addmm_(rows, weight.t()))


def _reject(
    x: Sequence[Tensor],
    rowptr: Sequence[Tensor],
    src: Sequence[Tensor],
    weight: Sequence[Tensor],
    reduce: str = "sum",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    return None


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
    """All rows of all terms: which rows have edges would have to come from the GPU first."""
    out = residual
    for v, r, s, w in zip(x, rowptr, src, weight, strict=True):
        rows = AGGREGATE.run(v, r, s, None, reduce)
        out = rows @ w.t() if out is None else torch.addmm(out, rows, w.t())
    assert out is not None
    return activate(out if bias is None else out + bias, activation)


AGGREGATE_LINEAR_SUM = register(
    OpDef(
        "aggregate_linear_sum",
        reference,
        fake,
        cost,
        samples,
        impls=(Impl("by-rows", "cpu", by_rows, _reject), Impl("in-turn", "cuda", in_turn, _reject)),
        differentiable=True,
    )
)
