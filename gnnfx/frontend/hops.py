"""Lists of numbers that add up to a number of rows, as loaders of mini-batches pass them.

`num_sampled_nodes_per_hop` and `num_sampled_edges_per_hop` say how many rows each hop of sampling
added.  On a graph of another size they must add up to the new size, and all differ, since tracing
takes equal numbers for one.  The edges of such a graph stay among the seeds, so that they remain
valid whichever hops are trimmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from gnnfx.frontend.signature import key_of

# Rows of the first hop that are there at least, beside those of the other hops.
_SEEDS = 4


@dataclass(frozen=True)
class Counts:
    """What becomes of each input: a number, or None where it is no entry of such a list.

    seeds: the first number of each list.
    least: the fewest rows that all lists can add up to.
    """

    values: list[int | None]
    seeds: list[int]
    least: int


def resized_counts(
    named: list[tuple[str, Any]], sizes: dict[tuple[int, tuple[str, ...]], int]
) -> Counts:
    """New numbers for the lists among `named` inputs that add up to a size.

    sizes: the new size of each (old size, node or edge type).
    """
    lists: dict[str, list[int]] = {}
    for place, (path, value) in enumerate(named):
        parent, _, last = path.rpartition(".")
        if type(value) is int and last.isdigit():
            lists.setdefault(parent, []).append(place)
    known = {n for _, value in named for n in _numbers(value)} | set(sizes.values())
    values: list[int | None] = [None] * len(named)
    seeds: list[int] = []
    small = (n for n in count(2) if n not in known)
    least = 0
    for parent, places in lists.items():
        total = sum(named[place][1] for place in places)
        new = sizes.get((total, key_of(parent)), sizes.get((total, ()), 0))
        rest = [next(small) for _ in places[1:]]
        least = max(least, sum(rest) + _SEEDS)
        first = new - sum(rest)
        if len(places) < 2 or first < _SEEDS:
            continue
        seeds.append(first)
        for place, number in zip(places, [first, *rest], strict=True):
            values[place] = number
    return Counts(values, seeds, least)


def _numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return (value,) if type(value) is int else ()
