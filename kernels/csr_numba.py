"""Rows of a CSR graph in Numba code: who works on which, and where their edges are."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from numba import njit

from gnnfx.kernels.vectors_numba import read_i32

PREFETCH_AHEAD = 16


@njit(forceinline=True)
def piece_start(rowptr, rows, pieces, piece):
    """First row of a piece: pieces have about as many rows and edges together, not as many rows."""
    edges_before = read_i32(rowptr)
    target = (rows + read_i32(rowptr + 4 * rows) - edges_before) * piece // pieces
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if middle + read_i32(rowptr + 4 * middle) - edges_before < target:
            low = middle + 1
        else:
            high = middle
    return low


@njit(forceinline=True)
def source(src, edge):
    """Source row of an edge."""
    return read_i32(src + 4 * edge)


@njit(forceinline=True)
def source_ahead(src, edge, last):
    """Source row of an edge that will be read soon; `last` is the last edge of all."""
    return read_i32(src + 4 * min(edge + PREFETCH_AHEAD, last))
