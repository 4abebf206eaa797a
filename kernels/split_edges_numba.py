"""CPU code of `split_edges`: each part of the edge list on one thread, as `compress` sorts it."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.threads import address, launch
from gnnfx.kernels.vectors_numba import read_i32, read_i64, take_piece, write_i64

EDGES, SRC, DST, TYPE, KNOWN, PLACES, COUNTS, LISTS, SOURCES, TARGETS, PARTS = range(2, 13)
_EDGES_A_PART = 50_000
_MOST_TYPES = 4096


@njit(forceinline=True)
def _list_of(a, edge):
    """Which list the edge belongs to, or -1."""
    kind = read_i64(a[TYPE] + 8 * edge)
    return read_i32(a[PLACES] + 4 * kind) if 0 <= kind < a[KNOWN] else -1


def _count():
    """COUNTS[part, list]: edges of the part in the list; zero before."""

    def kernel(a):
        while True:
            part = take_piece(a)
            if part >= a[PARTS]:
                return
            counts = a[COUNTS] + 8 * part * a[LISTS]
            for edge in range(a[EDGES] * part // a[PARTS], a[EDGES] * (part + 1) // a[PARTS]):
                found = _list_of(a, edge)
                if found >= 0:
                    write_i64(counts + 8 * found, read_i64(counts + 8 * found) + 1)

    return kernel


def _place():
    """Write sources and destinations of each list; COUNTS has the first place of each part."""

    def kernel(a):
        while True:
            part = take_piece(a)
            if part >= a[PARTS]:
                return
            counts = a[COUNTS] + 8 * part * a[LISTS]
            for edge in range(a[EDGES] * part // a[PARTS], a[EDGES] * (part + 1) // a[PARTS]):
                found = _list_of(a, edge)
                if found >= 0:
                    place = read_i64(counts + 8 * found)
                    write_i64(counts + 8 * found, place + 1)
                    sources = read_i64(a[SOURCES] + 8 * found)
                    targets = read_i64(a[TARGETS] + 8 * found)
                    write_i64(sources + 8 * place, read_i64(a[SRC] + 8 * edge))
                    write_i64(targets + 8 * place, read_i64(a[DST] + 8 * edge))

    return kernel


def reject_split_edges(edges: Tensor, edge_type: Tensor, types: Sequence[int]) -> str | None:
    if edges.shape != (2, edge_type.shape[0]):
        return f"edges of shape {tuple(edges.shape)} with {edge_type.shape[0]} types"
    if len(set(types)) != len(types) or not all(0 <= t < _MOST_TYPES for t in types):
        return f"types are not different numbers below {_MOST_TYPES}"
    return None


def split_edges(edges: Tensor, edge_type: Tensor, types: Sequence[int]) -> list[Tensor]:
    edges, edge_type = edges.contiguous(), edge_type.contiguous()
    total, lists, known = edge_type.shape[0], len(types), max(types) + 1
    places = torch.full((known,), -1, dtype=torch.int32, device="cpu")
    places[torch.tensor(types, device="cpu")] = torch.arange(lists, dtype=torch.int32, device="cpu")
    parts = max(1, min(torch.get_num_threads(), total // _EDGES_A_PART))
    counts = torch.zeros((parts, lists), dtype=torch.int64, device="cpu")
    ids = (edges[0], edges[1], edge_type)
    args = [total, *map(address, ids), known, address(places), address(counts), lists]
    launch(compiled(_count), parts, [*args, 0, 0, parts])
    ends = counts.cumsum(0)
    split = [torch.empty((2, n), dtype=torch.int64, device="cpu") for n in ends[-1].tolist()]
    counts.copy_(ends - counts)
    sources, targets = (
        torch.tensor([address(part[row]) for part in split], dtype=torch.int64, device="cpu")
        for row in (0, 1)
    )
    launch(compiled(_place), parts, [*args, address(sources), address(targets), parts])
    return split
