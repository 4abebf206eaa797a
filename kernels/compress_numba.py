"""CPU code of `compress`: a stable counting sort, each part of the edge list on one thread.

Parts count their edges into each node; a running sum over nodes, then parts, gives each part its
own places, so that all can write at once and edges keep their order.  With self-loops replaced,
neither pass looks at those that are there, and the running sum leaves a place behind each row.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import index_dtype
from gnnfx.kernels.threads import address, launch
from gnnfx.kernels.vectors_numba import prefetch, read_i32, read_i64, take_piece, write_i32

EDGES, NODES, SRC, DST, COUNTS, ROWPTR, SORTED, PERM, PARTS = range(2, 11)
_AHEAD = 16
_EDGES_A_PART = 50_000


@njit(forceinline=True)
def _read(index, position, wide):
    return read_i64(index + 8 * position) if wide else read_i32(index + 4 * position)


@njit(forceinline=True)
def _count_part(a, part, wide_src, wide_dst, replaces):
    """COUNTS[part, node]: edges of the part into the node."""
    counts = a[COUNTS] + 4 * part * a[NODES]
    for node in range(a[NODES]):
        write_i32(counts + 4 * node, 0)
    for edge in range(a[EDGES] * part // a[PARTS], a[EDGES] * (part + 1) // a[PARTS]):
        dst = _read(a[DST], edge, wide_dst)
        place = counts + 4 * dst
        if replaces:
            loop = _read(a[SRC], edge, wide_src) == dst
            write_i32(place, read_i32(place) + (0 if loop else 1))
        else:
            write_i32(place, read_i32(place) + 1)


@njit(forceinline=True)
def _add_up_parts(a, replaces):
    """Turn COUNTS into the first place of each part and node, and write ROWPTR and self-loops."""
    parts, nodes, total = a[PARTS], a[NODES], 0
    for node in range(nodes):
        write_i32(a[ROWPTR] + 4 * node, total)
        for part in range(parts):
            place = a[COUNTS] + 4 * (part * nodes + node)
            count = read_i32(place)
            write_i32(place, total)
            total += count
        if replaces:
            write_i32(a[SORTED] + 4 * total, node)
            total += 1
    write_i32(a[ROWPTR] + 4 * nodes, total)


@njit(forceinline=True)
def _place_part(a, part, wide_src, wide_dst, replaces):
    """Write SORTED and, unless self-loops are replaced, PERM."""
    counts = a[COUNTS] + 4 * part * a[NODES]
    first, stop = a[EDGES] * part // a[PARTS], a[EDGES] * (part + 1) // a[PARTS]
    for edge in range(first, stop):
        ahead = 4 * _read(a[DST], min(edge + _AHEAD, stop - 1), wide_dst)
        soon = 4 * read_i32(counts + ahead)
        prefetch(a[SORTED] + soon, 4)
        src = _read(a[SRC], edge, wide_src)
        dst = _read(a[DST], edge, wide_dst)
        if replaces and src == dst:
            continue
        counter = counts + 4 * dst
        place = 4 * read_i32(counter)
        write_i32(counter, read_i32(counter) + 1)
        write_i32(a[SORTED] + place, src)
        if not replaces:
            prefetch(a[PERM] + soon, 4)
            write_i32(a[PERM] + place, edge)


def _count(wide_src, wide_dst, replaces):
    def kernel(a):
        while True:
            part = take_piece(a)
            if part >= a[PARTS]:
                return
            _count_part(a, part, wide_src, wide_dst, replaces)

    return kernel


def _add_up(replaces):
    def kernel(a):
        _add_up_parts(a, replaces)

    return kernel


def _place(wide_src, wide_dst, replaces):
    def kernel(a):
        while True:
            part = take_piece(a)
            if part >= a[PARTS]:
                return
            _place_part(a, part, wide_src, wide_dst, replaces)

    return kernel


def _all(wide_src, wide_dst, replaces):
    """The three passes over a single part."""

    def kernel(a):
        _count_part(a, 0, wide_src, wide_dst, replaces)
        _add_up_parts(a, replaces)
        _place_part(a, 0, wide_src, wide_dst, replaces)

    return kernel


def reject_compress(src: Tensor, dst: Tensor, num_dst: int) -> str | None:
    if index_dtype(src.shape[0], num_dst) != torch.int32:
        return "the kernel counts in 32 bits"
    return None


def compress(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    perm = torch.empty((src.shape[0],), dtype=torch.int32, device="cpu")
    rowptr, ordered = _sort(src, dst, num_dst, perm)
    return rowptr, ordered, perm


def reject_compress_self_loops(src: Tensor, dst: Tensor, num_dst: int) -> str | None:
    if index_dtype(src.shape[0] + num_dst, num_dst) != torch.int32:
        return "the kernel counts in 32 bits"
    return None


def compress_self_loops(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor]:
    rowptr, ordered = _sort(src, dst, num_dst, None)
    return rowptr, ordered[: int(rowptr[-1])]


def _sort(src: Tensor, dst: Tensor, num_dst: int, perm: Tensor | None) -> tuple[Tensor, Tensor]:
    """(rowptr, sorted sources); without `perm`, self-loops are replaced by one a node."""
    src, dst, edges, replaces = src.contiguous(), dst.contiguous(), src.shape[0], perm is None
    parts = max(1, min(torch.get_num_threads(), edges // _EDGES_A_PART, 4 * edges // (num_dst + 1)))
    counts = torch.empty((parts, num_dst), dtype=torch.int32, device="cpu")
    rowptr = torch.empty((num_dst + 1,), dtype=torch.int32, device="cpu")
    most = edges + num_dst if replaces else edges
    ordered = torch.empty((most,), dtype=torch.int32, device="cpu")
    args = [edges, num_dst, *map(address, (src, dst, counts, rowptr, ordered, perm)), parts]
    wide_src, wide_dst = (index.dtype == torch.int64 for index in (src, dst))
    if parts == 1:
        launch(compiled(_all, wide_src, wide_dst, replaces), 1, args)
        return rowptr, ordered
    launch(compiled(_count, wide_src and replaces, wide_dst, replaces), parts, args)
    launch(compiled(_add_up, replaces), 1, args)
    launch(compiled(_place, wide_src, wide_dst, replaces), parts, args)
    return rowptr, ordered
