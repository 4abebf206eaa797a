"""CPU code of `compress`: a stable counting sort, each part of the edge list on one thread.

Parts count their edges into each node; a running sum over nodes, then parts, gives each part its
own places, so that all can write at once and edges keep their order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import index_dtype
from gnnfx.kernels.threads import address, launch
from gnnfx.kernels.vectors_numba import prefetch, read_i32, read_i64, take_piece, write_i32

EDGES, NODES, SRC, DST, COUNTS, ROWPTR, SORTED, PERM, PARTS = range(2, 11)
_AHEAD = 16
_EDGES_A_PART = 50_000


def _count(wide):
    """COUNTS[part, node]: edges of the part into the node; zero before."""
    read, size = (read_i64, 8) if wide else (read_i32, 4)

    def kernel(a):
        while True:
            part = take_piece(a)
            if part >= a[PARTS]:
                return
            counts = a[COUNTS] + 4 * part * a[NODES]
            for edge in range(a[EDGES] * part // a[PARTS], a[EDGES] * (part + 1) // a[PARTS]):
                place = counts + 4 * read(a[DST] + size * edge)
                write_i32(place, read_i32(place) + 1)

    return kernel


def _add_up():
    """Turn COUNTS into the first place of each part and node, and write ROWPTR."""

    def kernel(a):
        parts, nodes, total = a[PARTS], a[NODES], 0
        for node in range(nodes):
            write_i32(a[ROWPTR] + 4 * node, total)
            for part in range(parts):
                place = a[COUNTS] + 4 * (part * nodes + node)
                count = read_i32(place)
                write_i32(place, total)
                total += count
        write_i32(a[ROWPTR] + 4 * nodes, total)

    return kernel


def _place(wide_src, wide_dst):
    """Write SORTED and PERM."""
    read_src, src_size = (read_i64, 8) if wide_src else (read_i32, 4)
    read_dst, dst_size = (read_i64, 8) if wide_dst else (read_i32, 4)

    def kernel(a):
        while True:
            part = take_piece(a)
            if part >= a[PARTS]:
                return
            counts = a[COUNTS] + 4 * part * a[NODES]
            first, stop = a[EDGES] * part // a[PARTS], a[EDGES] * (part + 1) // a[PARTS]
            for edge in range(first, stop):
                ahead = 4 * read_dst(a[DST] + dst_size * min(edge + _AHEAD, stop - 1))
                soon = 4 * read_i32(counts + ahead)
                prefetch(a[SORTED] + soon, 4)
                prefetch(a[PERM] + soon, 4)
                counter = counts + 4 * read_dst(a[DST] + dst_size * edge)
                place = 4 * read_i32(counter)
                write_i32(counter, read_i32(counter) + 1)
                write_i32(a[SORTED] + place, read_src(a[SRC] + src_size * edge))
                write_i32(a[PERM] + place, edge)

    return kernel


def reject_compress(src: Tensor, dst: Tensor, num_dst: int) -> str | None:
    if index_dtype(src.shape[0], num_dst) != torch.int32:
        return "the kernel counts in 32 bits"
    return None


def compress(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    src, dst, edges = src.contiguous(), dst.contiguous(), src.shape[0]
    parts = max(1, min(torch.get_num_threads(), edges // _EDGES_A_PART, 4 * edges // (num_dst + 1)))
    counts = torch.zeros((parts, num_dst), dtype=torch.int32, device="cpu")
    rowptr = torch.empty((num_dst + 1,), dtype=torch.int32, device="cpu")
    ordered, perm = (torch.empty((edges,), dtype=torch.int32, device="cpu") for _ in range(2))
    args = [edges, num_dst, *map(address, (src, dst, counts, rowptr, ordered, perm)), parts]
    wide_src, wide_dst = (index.dtype == torch.int64 for index in (src, dst))
    launch(compiled(_count, wide_dst), parts, args)
    launch(compiled(_add_up), 1, args)
    launch(compiled(_place, wide_src, wide_dst), parts, args)
    return rowptr, ordered, perm
