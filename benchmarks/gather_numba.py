"""Read rows in the order of an index and do nothing else: what gathering costs at the least.

Bytes of all rows are added up in one vector register, so nothing is written and nothing is
skipped; rows to come are prefetched as the kernels of gnnfx do it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr_numba import source, source_ahead
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import load_i8, prefetch, store, take_piece

PIECES, EDGES, ROW_BYTES, TABLE, INDEX, OUT = range(1, 7)
_MOST_PREFETCHED = 512


def _read_rows(lanes, prefetched):
    def kernel(a):
        width, table, index = a[ROW_BYTES], a[TABLE], a[INDEX]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            total = load_i8(a[OUT] + lanes * piece, lanes)
            first = a[EDGES] * piece // a[PIECES]
            stop = a[EDGES] * (piece + 1) // a[PIECES]
            for edge in range(first, stop):
                ahead = source_ahead(index, edge, a[EDGES] - 1)
                prefetch(table + width * ahead, prefetched)
                row = table + width * source(index, edge)
                offset = 0
                while offset < width:
                    offset = min(offset, width - lanes)
                    total = total + load_i8(row + offset, lanes)
                    offset += lanes
            store(a[OUT] + lanes * piece, total)

    return kernel


def read_rows(table: Tensor, index: Tensor) -> Tensor:
    """Sums of the bytes of contiguous `table` [N, ...] at the rows of int32 `index` [E]."""
    row_bytes = table.nbytes // max(table.shape[0], 1)
    lanes = choose_lanes(row_bytes, 64)
    pieces = count_pieces(index.shape[0] * row_bytes, index.shape[0])
    out = torch.zeros((pieces, lanes), dtype=torch.int8)
    kernel = compiled(_read_rows, lanes, min(row_bytes, _MOST_PREFETCHED))
    places = [address(table), address(index), address(out)]
    launch(kernel, pieces, [index.shape[0], row_bytes, *places])
    return out
