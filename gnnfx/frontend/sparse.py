"""Sparse adjacency matrices while a model is captured.

`torch.export` cannot trace sparse tensors, so models are captured with a stand-in: an object that
answers like a sparse tensor and computes with plain index and value tensors.  What the model
computes from an adjacency matrix then becomes gathers and scatters like any other.  Entries keep
the order and the duplicates of the given matrix.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

COMPRESSED = {torch.sparse_csr: "csr", torch.sparse_csc: "csc"}
LAYOUTS = {torch.sparse_coo: "coo", **COMPRESSED}
_REDUCES = {"sum": "sum", "mean": "mean"} | dict.fromkeys(("amax", "max"), "amax")
_REDUCES |= dict.fromkeys(("amin", "min"), "amin")
# Compressed rows that were expanded already: looked up where PyG would expand them again.
_EXPANDED: weakref.WeakValueDictionary[int, SparseMatrix] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class SparseForm:
    """What stays of a sparse matrix when its parts are taken away."""

    layout: torch.layout
    coalesced: bool

    @staticmethod
    def of(matrix: Tensor) -> SparseForm:
        coo = matrix.layout == torch.sparse_coo
        return SparseForm(matrix.layout, not coo or matrix.is_coalesced())


def is_sparse(value: Any) -> bool:
    """Whether `value` is a real sparse tensor of a layout that graphs come in."""
    return isinstance(value, Tensor) and value.layout in LAYOUTS


def components(matrix: Tensor) -> dict[str, Tensor | int]:
    """The parts of a sparse matrix [rows, cols]: compressed or row indices, columns, values.

    CSR: ptr [rows + 1], index [nnz] (columns).  CSC: ptr [cols + 1], index [nnz] (rows).
    COO: index [2, nnz].
    """
    rows, cols = matrix.shape[:2]
    size: dict[str, Tensor | int] = {"rows": rows, "cols": cols}
    matrix = matrix.detach()
    if matrix.layout == torch.sparse_csr:
        return {"ptr": matrix.crow_indices(), "index": matrix.col_indices(),
                "value": matrix.values(), **size}  # fmt: skip
    if matrix.layout == torch.sparse_csc:
        return {"ptr": matrix.ccol_indices(), "index": matrix.row_indices(),
                "value": matrix.values(), **size}  # fmt: skip
    return {"index": matrix._indices(), "value": matrix._values(), **size}


def part_names(form: SparseForm) -> tuple[str, ...]:
    """The names of the parts of a sparse matrix, in order."""
    ptr = () if form.layout == torch.sparse_coo else ("ptr",)
    return (*ptr, "index", "value", "rows", "cols")


def rebuilt(form: SparseForm, parts: dict[str, Any]) -> Tensor:
    """The real sparse tensor of this form with these parts."""
    size = (parts["rows"], parts["cols"], *parts["value"].shape[1:])
    if form.layout == torch.sparse_coo:
        matrix = torch.sparse_coo_tensor(
            parts["index"], parts["value"], size, check_invariants=False
        )
        return matrix._coalesced_(form.coalesced)
    make = torch.sparse_csr_tensor if form.layout == torch.sparse_csr else torch.sparse_csc_tensor
    return make(parts["ptr"], parts["index"], parts["value"], size, check_invariants=False)


def stand_in(form: SparseForm, parts: dict[str, Any]) -> SparseMatrix:
    """The stand-in for a matrix of this form with these parts."""
    size = (parts["rows"], parts["cols"])
    index, value = parts["index"], parts["value"]
    if form.layout == torch.sparse_coo:
        return SparseMatrix(index[0], index[1], value, size, form.layout, form.coalesced)
    lines = _expand(parts["ptr"], index)
    row, col = (lines, index) if form.layout == torch.sparse_csr else (index, lines)
    return SparseMatrix(row, col, value, size, form.layout, True, parts["ptr"])


def resized(matrix: Tensor, rows: int, cols: int, nnz: int) -> Tensor:
    """A matrix of other sizes with evenly spaced entries of `matrix`, for tracing."""
    coo = matrix.detach().to_sparse_coo()
    index, value = coo._indices(), coo._values()
    picks = torch.arange(nnz, device=index.device) * max(index.shape[1], 1) // max(nnz, 1)
    if index.shape[1] == 0:
        index, value = index.new_zeros(2, nnz), value.new_ones(nnz, *value.shape[1:])
    else:
        index, value = index[:, picks], value[picks]
    spread = torch.arange(nnz, device=index.device)
    row = (index[0] * rows // max(matrix.shape[0], 1) + spread) % rows
    col = (index[1] * cols // max(matrix.shape[1], 1) + spread * 7) % cols
    size = (rows, cols, *value.shape[1:])
    result = torch.sparse_coo_tensor(torch.stack([row, col]), value, size)
    if matrix.layout == torch.sparse_coo:
        return result.coalesce() if matrix.is_coalesced() else result
    result = result.coalesce()
    return result.to_sparse_csr() if matrix.layout == torch.sparse_csr else result.to_sparse_csc()


def _expand(ptr: Tensor, index: Tensor) -> Tensor:
    """The line of each entry, from where lines start: as many as `index` has entries."""
    places = torch.arange(index.shape[0], device=index.device)
    return torch.searchsorted(ptr[1:].contiguous().to(places.dtype), places, right=True)


# Methods take fewer forms of arguments than a tensor's.
_Tensor: Any = Tensor


class SparseMatrix(_Tensor):  # type: ignore[misc]
    """Answers like a sparse tensor [rows, cols], made of plain tensors.

    row, col: [nnz] indices in the order of the layout; value: [nnz, ...].  A real (empty) tensor,
    since PyG asks `isinstance(adj, Tensor)` before it looks at the layout.
    """

    row: Tensor
    col: Tensor
    value: Tensor

    @staticmethod
    def __new__(cls, *args: Any) -> SparseMatrix:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return Tensor._make_subclass(cls, torch.empty(0))

    def __init__(
        self,
        row: Tensor,
        col: Tensor,
        value: Tensor,
        size: tuple[Any, ...],
        layout: torch.layout,
        coalesced: bool,
        ptr: Tensor | None = None,
    ) -> None:
        self.row, self.col, self.value = row, col, value
        self._shape = (size[0], size[1], *value.shape[1:])
        self._layout = layout
        self._coalesced = coalesced
        self._ptr = ptr
        if ptr is not None:
            _EXPANDED[id(ptr)] = self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = _FUNCTIONS.get(func)
        if handler is None:
            raise NotImplementedError(f"{getattr(func, '__name__', func)} of a sparse adjacency")
        return handler(*args, **(kwargs or {}))

    # What a tensor tells about itself.
    shape = property(lambda self: self._shape)
    layout = property(lambda self: self._layout)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: self.value.device)
    is_sparse = property(lambda self: self.layout == torch.sparse_coo)
    is_sparse_csr = property(lambda self: self.layout == torch.sparse_csr)
    is_cuda = property(lambda self: self.value.is_cuda)
    is_quantized = False
    requires_grad = property(lambda self: self.value.requires_grad)
    T = property(lambda self: self.t())

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> Any:
        return self.shape[0] * self.shape[1]

    def is_coalesced(self) -> bool:
        return self._coalesced

    def _nnz(self) -> Any:
        return self.row.shape[0]

    def values(self) -> Tensor:
        return self.value

    _values = values

    def indices(self) -> Tensor:
        return torch.stack([self.row, self.col])

    _indices = indices

    def crow_indices(self) -> Tensor:
        return self._compressed(torch.sparse_csr)

    def ccol_indices(self) -> Tensor:
        return self._compressed(torch.sparse_csc)

    def col_indices(self) -> Tensor:
        return self.col

    def row_indices(self) -> Tensor:
        return self.row

    def _compressed(self, layout: torch.layout) -> Tensor:
        if self.layout != layout:
            raise RuntimeError(f"compressed indices of a {self.layout} matrix")
        if self._ptr is None:
            rows = layout == torch.sparse_csr
            line, count = (self.row, self.shape[0]) if rows else (self.col, self.shape[1])
            counts = torch.zeros(count, dtype=torch.int64, device=line.device)
            counts = counts.scatter_add(0, line, torch.ones_like(line))
            self._ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            _EXPANDED[id(self._ptr)] = self
        return self._ptr

    # What can be made of it.
    def with_value(self, value: Tensor) -> SparseMatrix:
        return SparseMatrix(
            self.row, self.col, value, self.shape[:2], self.layout, self._coalesced, self._ptr
        )

    def detach(self) -> SparseMatrix:
        return self.with_value(self.value.detach())

    def clone(self) -> SparseMatrix:
        return self.with_value(self.value.clone())

    def requires_grad_(self, requires_grad: bool = True) -> SparseMatrix:
        return self

    def to(self, *args: Any, **kwargs: Any) -> SparseMatrix:
        return self.with_value(self.value.to(*args, **kwargs))

    def float(self) -> SparseMatrix:
        return self.with_value(self.value.float())

    def t(self) -> SparseMatrix:
        flipped = {torch.sparse_csr: torch.sparse_csc, torch.sparse_csc: torch.sparse_csr}
        layout = flipped.get(self.layout, self.layout)
        size = (self.shape[1], self.shape[0])
        return SparseMatrix(self.col, self.row, self.value, size, layout, False, self._ptr)

    def transpose(self, dim0: int, dim1: int) -> SparseMatrix:
        return self.t() if {dim0 % 2, dim1 % 2} == {0, 1} else self

    def coalesce(self) -> SparseMatrix:
        """Duplicates summed, in row-major order."""
        if self.layout == torch.sparse_coo and self._coalesced:
            return self
        key = self.row * self.shape[1] + self.col
        unique, place = torch.unique(key, sorted=True, return_inverse=True)
        value = self.value.new_zeros((unique.shape[0], *self.value.shape[1:]))
        value = value.index_add(0, place, self.value)
        row, col = unique // self.shape[1], unique % self.shape[1]
        return SparseMatrix(row, col, value, self.shape[:2], torch.sparse_coo, True)

    def _coalesced_(self, coalesced: bool) -> SparseMatrix:
        self._coalesced = coalesced
        return self

    def to_sparse_coo(self) -> SparseMatrix:
        if self.layout == torch.sparse_coo:
            return self
        if self.layout == torch.sparse_csr:
            return SparseMatrix(
                self.row, self.col, self.value, self.shape[:2], torch.sparse_coo, True
            )
        return self._sorted(torch.sparse_coo)

    def to_sparse(self, *args: Any, **kwargs: Any) -> SparseMatrix:
        layout = kwargs.get("layout", torch.sparse_coo)
        return self.to_sparse_coo() if layout == torch.sparse_coo else self._sorted(layout)

    def to_sparse_csr(self) -> SparseMatrix:
        if self.layout == torch.sparse_coo:
            self = self.coalesce()  # torch coalesces on this conversion
        return self if self.layout == torch.sparse_csr else self._sorted(torch.sparse_csr)

    def to_sparse_csc(self) -> SparseMatrix:
        if self.layout == torch.sparse_coo:
            self = self.coalesce()
        return self if self.layout == torch.sparse_csc else self._sorted(torch.sparse_csc)

    def _sorted(self, layout: torch.layout) -> SparseMatrix:
        line = self.col if layout == torch.sparse_csc else self.row
        order = torch.argsort(line, stable=True)
        return SparseMatrix(
            self.row[order], self.col[order], self.value[order], self.shape[:2], layout, True
        )

    def to_dense(self) -> Tensor:
        flat = self.value.new_zeros((self.shape[0] * self.shape[1], *self.value.shape[1:]))
        flat = flat.index_add(0, self.row * self.shape[1] + self.col, self.value)
        return flat.view(*self.shape)

    def sum(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.value.sum()
        line, count = (self.col, self.shape[1]) if dim == 0 else (self.row, self.shape[0])
        total = self.value.new_zeros((count, *self.value.shape[1:]))
        return total.index_add(0, line, self.value)

    def index_select(self, dim: int, index: Tensor) -> SparseMatrix:
        """Rows or columns by number: each entry is repeated for every place its line is asked for.

        Exact for distinct numbers, which is what pooling asks for.
        """
        count = self.shape[dim]
        place = index.new_full((count,), -1)
        place = place.scatter(0, index, torch.arange(index.shape[0], device=index.device))
        row, col = (place[self.row], self.col) if dim == 0 else (self.row, place[self.col])
        keep = (row if dim == 0 else col) >= 0
        size = (index.shape[0], self.shape[1]) if dim == 0 else (self.shape[0], index.shape[0])
        return SparseMatrix(
            row[keep], col[keep], self.value[keep], size, torch.sparse_coo, False
        )._sorted(torch.sparse_coo)

    def matmul(self, other: Any, reduce: str = "sum") -> Any:
        """Product with dense [cols, F] or another matrix; other reductions take no sums."""
        if type(other) is SparseMatrix:
            return _sparse_product(self, other)
        if reduce not in _REDUCES:
            raise ValueError(f"reduce must be one of {sorted(_REDUCES)}, got {reduce!r}")
        vector = other.dim() == 1
        dense = other[:, None] if vector else other
        messages = dense.index_select(0, self.col) * self.value[:, None]
        out = messages.new_zeros((self.shape[0], dense.shape[1]))
        if reduce == "sum":
            out = out.index_add(0, self.row, messages)
        else:
            index = self.row[:, None].expand_as(messages)
            out = out.scatter_reduce(0, index, messages, _REDUCES[reduce], include_self=False)
        return out[:, 0] if vector else out

    __matmul__ = mm = matmul

    def __mul__(self, other: Any) -> SparseMatrix:
        if isinstance(other, (int, float)) or other.dim() == 0:
            return self.with_value(self.value * other)
        raise NotImplementedError("elementwise product of a sparse adjacency")

    __rmul__ = __mul__


def _sparse_product(a: SparseMatrix, b: SparseMatrix) -> SparseMatrix:
    """a @ b, coalesced."""
    (rows, inner), columns, layout = a.shape[:2], b.shape[1], a.layout
    a, b = (m.coalesce() if m.layout == torch.sparse_coo else m for m in (a, b))
    index, value = torch.ops.gnnfx.sparse_product(
        a.indices(), a.value, b.indices(), b.value, rows, inner, columns
    )
    layout = torch.sparse_csr if layout == torch.sparse_csr else torch.sparse_coo
    return SparseMatrix(index[0], index[1], value, (rows, columns), layout, True)


def _from_coo(indices: Tensor, values: Tensor, size: Any = None, **kwargs: Any) -> SparseMatrix:
    if size is None:
        raise NotImplementedError("a sparse matrix without a size")
    done = bool(kwargs.get("is_coalesced"))
    return SparseMatrix(indices[0], indices[1], values, tuple(size[:2]), torch.sparse_coo, done)


def _from_csr(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, size: Any, **kwargs: Any
) -> SparseMatrix:
    row = expand_ptr(crow_indices, col_indices)
    size = tuple(size[:2])
    return SparseMatrix(row, col_indices, values, size, torch.sparse_csr, True, crow_indices)


def _from_csc(
    ccol_indices: Tensor, row_indices: Tensor, values: Tensor, size: Any, **kwargs: Any
) -> SparseMatrix:
    col = expand_ptr(ccol_indices, row_indices)
    size = tuple(size[:2])
    return SparseMatrix(row_indices, col, values, size, torch.sparse_csc, True, ccol_indices)


def expand_ptr(ptr: Tensor, index: Tensor) -> Tensor:
    """The line of each entry; known already if `ptr` belongs to a stand-in."""
    known = known_lines(ptr)
    return _expand(ptr, index) if known is None else known


def known_lines(ptr: Tensor) -> Tensor | None:
    """The lines of the stand-in that `ptr` came from, or None."""
    matrix = _EXPANDED.get(id(ptr))
    if matrix is None or matrix._ptr is not ptr:
        return None
    return matrix.row if matrix.layout == torch.sparse_csr else matrix.col


def _dense_to_sparse(dense: Tensor, *args: Any, **kwargs: Any) -> SparseMatrix:
    index = dense.nonzero().t()
    value = dense[index[0], index[1]]
    return SparseMatrix(index[0], index[1], value, tuple(dense.shape), torch.sparse_coo, True)


def _linear(x: SparseMatrix, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = x.matmul(weight.t())
    return out if bias is None else out + bias


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.linear: _linear,
    torch.clone: lambda a: a.clone(),
    torch.sparse.mm: lambda a, b, reduce="sum": a.matmul(b, reduce),
    torch.mm: lambda a, b: a.matmul(b),
    torch.matmul: lambda a, b: a.matmul(b),
    torch.spmm: lambda a, b: a.matmul(b),
    torch.mul: lambda a, b: a * b,
    torch.t: lambda a: a.t(),
    torch.transpose: lambda a, i, j: a.transpose(i, j),
    torch.is_floating_point: lambda a: a.value.is_floating_point(),
}


class SparseAsEdges(TorchFunctionMode):
    """Sparse matrices that the captured model makes become stand-ins as well."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made: dict[Any, Callable[..., Any]] = {
            torch.sparse_coo_tensor: _from_coo,
            torch.sparse_csr_tensor: _from_csr,
            torch.sparse_csc_tensor: _from_csc,
            Tensor.to_sparse: _dense_to_sparse,
            Tensor.to_sparse_coo: _dense_to_sparse,
        }
        return made.get(func, func)(*args, **(kwargs or {}))
