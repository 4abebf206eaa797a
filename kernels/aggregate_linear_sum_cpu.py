"""CPU code of `aggregate_linear_sum`: terms in turn, each on the rows that have edges or on all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnnfx.ir.op import accept
from gnnfx.kernels.aggregate_linear_sum import all_rows
from gnnfx.kernels.epilogue import activate_in_place
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.memory import empty

# From this share of rows on, leaving out the others costs more than multiplying them.
_MANY = 0.7
# Multiply-adds of all rows that take no longer than counting those that have edges.
_SMALL = 2**24
# A value read in the order of an index takes about as long as so many multiply-adds.
_MULTIPLICATIONS_A_READ = 10

reject_by_rows = accept


def by_rows(
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
    """The terms in turn, each on the rows that have edges of its relation if these are few."""
    rows, outputs = rowptr[0].shape[0] - 1, weight[0].shape[0]
    total, owned = residual, False
    if own is not None:
        total, owned = LINEAR.run(own, own_weight, None, residual), True
    for number, (v, r, s, w) in enumerate(zip(x, rowptr, src, weight, strict=True), 1):
        used = None if _is_small(rows, s, w) else _have_edges(r).nonzero().view(-1)
        if used is None or len(used) > _MANY * rows:
            first = multiplies_first(len(v) - (rows if used is None else len(used)), len(s), w)
            if number == len(x):
                return all_rows(v, r, s, w, reduce, bias, total, activation, first)
            total, owned = all_rows(v, r, s, w, reduce, None, total, "none", first), True
            continue
        if total is None or not owned:
            out = empty((rows, outputs))
            total, owned = out.zero_() if total is None else out.copy_(total), True
        if len(s):
            _add_rows(total, used, v, r, s, w, reduce)
    assert total is not None
    total = total if bias is None else total.add_(bias)
    return activate_in_place(total, activation)


def _is_small(rows: int, src: Tensor, weight: Tensor) -> bool:
    """Whether all rows are multiplied without a look at which have edges, as most may."""
    return rows <= len(src) and rows * weight.numel() < _SMALL


def _have_edges(rowptr: Tensor) -> Tensor:
    """Which rows have edges, bool [N]."""
    return rowptr[1:] > rowptr[:-1]


def count_used(rowptr: Tensor, src: Tensor, weight: Tensor) -> int:
    """How many rows have edges; of a small product, how many may have."""
    rows = rowptr.shape[0] - 1
    if rows * weight.numel() < _SMALL:
        return min(rows, src.shape[0])
    return int(_have_edges(rowptr).sum())


def multiplies_first(
    more_rows: int, edges: int, weight: Tensor, a_read: float = _MULTIPLICATIONS_A_READ
) -> bool:
    """Whether fewer channels to read for each edge are worth so many more rows to multiply."""
    outputs, channels = weight.shape
    return more_rows * outputs * channels < a_read * edges * (channels - outputs)


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
    first = multiplies_first(len(x) - len(used), len(src), weight)
    total.index_copy_(0, used, all_rows(x, ends, src, weight, reduce, None, sums, "none", first))
