"""The product of two sparse matrices, as pooling layers take it of adjacency matrices.

sparse_product(...) = [2, nnz] rows and columns in row-major order, each once, and their values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, Impl, OpDef, accept, register
from gnnfx.kernels.compress import COMPRESS
from gnnfx.kernels.csr import num_bytes


def reference(
    index_a: Tensor,
    value_a: Tensor,
    index_b: Tensor,
    value_b: Tensor,
    rows: int,
    inner: int,
    columns: int,
) -> list[Tensor]:
    """A [rows, inner] times B [inner, columns], from indices [2, nnz] int64 and values [nnz].

    Entries are in any order, each at a place of its own.  Places whose values add up to zero stay.
    """
    first, second = _meeting(index_a, index_b, inner)
    key = index_a[0, first] * columns + index_b[1, second]
    unique, place = torch.unique(key, return_inverse=True)
    values = value_a.new_zeros(unique.shape).index_add(0, place, value_a[first] * value_b[second])
    return [torch.stack([unique // columns, unique % columns]), values]


def _meeting(index_a: Tensor, index_b: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """Every pair of an entry of A and one of B whose column and row are the same."""
    order = index_b[0].argsort(stable=True)
    count = torch.bincount(index_b[0], minlength=inner)
    meets = count[index_a[1]]
    first = torch.repeat_interleave(torch.arange(len(meets), device=meets.device), meets)
    nth = torch.arange(len(first), device=first.device) - (meets.cumsum(0) - meets)[first]
    return first, order[(count.cumsum(0) - count)[index_a[1, first]] + nth]


def _by_torch(
    index_a: Tensor,
    value_a: Tensor,
    index_b: Tensor,
    value_b: Tensor,
    rows: int,
    inner: int,
    columns: int,
) -> list[Tensor]:
    a = _compressed(index_a, value_a, rows, inner)
    product = a @ _compressed(index_b, value_b, inner, columns)
    ends, column = product.crow_indices(), product.col_indices()
    row = torch.repeat_interleave(torch.arange(rows, device=ends.device), ends.diff())
    # The library leaves columns in an order of its own: sorted by column, and then by row.
    _, of_columns, by_column = COMPRESS.run(row, column, columns)
    _, order, _ = COMPRESS.run(by_column, of_columns, rows)
    return [torch.stack([row, column[order].long()]), product.values()[order]]


def _compressed(index: Tensor, value: Tensor, rows: int, columns: int) -> Tensor:
    rowptr, column, order = COMPRESS.run(index[1], index[0], rows)
    size = (rows, columns)
    return torch.sparse_csr_tensor(rowptr, column, value[order], size, check_invariants=False)


def _refuse_by_torch(index_a: Tensor, value_a: Tensor, *_: Any) -> str | None:
    if not torch.backends.mkl.is_available():
        return "torch multiplies sparse matrices with MKL"
    known = value_a.dtype in (torch.float32, torch.float64)
    return None if known else f"MKL does not multiply {value_a.dtype}"


def gradient(
    grads: list[Tensor | None],
    result: None,
    needs: tuple[bool, ...],
    index_a: Tensor,
    value_a: Tensor,
    index_b: Tensor,
    value_b: Tensor,
    rows: int,
    inner: int,
    columns: int,
) -> tuple[Tensor | None, ...]:
    """Of the values: each pair of entries that meet has the gradient of its place."""
    first, second = _meeting(index_a, index_b, inner)
    key = index_a[0, first] * columns + index_b[1, second]
    _, place = torch.unique(key, return_inverse=True)
    found: list[Tensor | None] = [None] * 7
    if grads[1] is not None:
        of_pairs = grads[1][place]
        for at, own, other, values in ((1, first, second, value_b), (3, second, first, value_a)):
            if needs[at]:
                shape = (value_a if at == 1 else value_b).shape
                found[at] = values.new_zeros(shape).index_add(0, own, of_pairs * values[other])
    return tuple(found)


def fake(
    index_a: Tensor,
    value_a: Tensor,
    index_b: Tensor,
    value_b: Tensor,
    rows: int,
    inner: int,
    columns: int,
) -> list[Tensor]:
    for name, index in (("index_a", index_a), ("index_b", index_b)):
        if index.dtype != torch.int64 or index.dim() != 2:
            raise ValueError(f"{name} must be int64 [2, nnz], got {index.dtype} {index.shape}")
    if value_a.dtype != value_b.dtype or not value_a.is_floating_point():
        raise ValueError(f"values must be floats alike, got {value_a.dtype} and {value_b.dtype}")
    size = torch.library.get_ctx().new_dynamic_size()
    return [index_a.new_empty((2, size)), value_a.new_empty((size,))]


def cost(
    index_a: Tensor,
    value_a: Tensor,
    index_b: Tensor,
    value_b: Tensor,
    rows: int,
    inner: int,
    columns: int,
) -> Cost:
    """At the least each entry of A meets one of B; how many do, their places decide."""
    read = sum(map(num_bytes, (index_a, value_a, index_b, value_b)))
    return Cost(2 * index_a.shape[1], 2 * read)


def samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for a, b, rows, inner, columns in [
        (0, 5, 3, 4, 2),
        (1, 1, 1, 1, 1),
        (40, 30, 7, 9, 5),
        (2000, 3000, 150, 90, 400),
    ]:
        given: list[Tensor] = []
        for count, high, wide in ((a, rows, inner), (b, inner, columns)):
            places = torch.randperm(high * wide, generator=generator)[:count]
            index = torch.stack([places // wide, places % wide])
            given += [index, torch.randn(index.shape[1], generator=generator)]
        yield *(g.to(device) for g in given), rows, inner, columns


SPARSE_PRODUCT = register(
    OpDef(
        "sparse_product",
        reference,
        fake,
        cost,
        samples,
        impls=(
            Impl("torch", "cpu", _by_torch, _refuse_by_torch),
            Impl("torch", "cuda", _by_torch, accept),
        ),
        differentiable=True,
        gradient=gradient,
        sized_by_values=True,
    )
)
