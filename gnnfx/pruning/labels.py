"""Labels of channels: every position along an axis of fixed size has one, equal ones share fate.

A label is an integer; labels that must be kept or removed together are joined.  Where an axis is
split into heads and channels per head, its labels are products: one is removed exactly when any
of its factors is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx

Labels = tuple[int, ...]


class Unfollowed(Exception):
    """An op whose axes cannot be followed; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of one value.

    axes: the labels along each axis, or None for rows and for axes of size 1.
    zero: for each axis, whether removed positions hold zeros while they are only masked.
    """

    axes: tuple[Labels | None, ...]
    zero: tuple[bool, ...]

    def without(self, dims: Sequence[int]) -> Layout:
        """The layout after dropping the axes `dims`."""
        kept = [d for d in range(len(self.axes)) if d not in dims]
        return self.order(kept)

    def order(self, dims: Sequence[int]) -> Layout:
        """The layout with the axes `dims`, in that order."""
        return Layout(tuple(self.axes[d] for d in dims), tuple(self.zero[d] for d in dims))

    def replace(self, dim: int, labels: Labels | None, zero: bool) -> Layout:
        """The layout with another axis at `dim`."""
        axes, zeros = list(self.axes), list(self.zero)
        axes[dim], zeros[dim] = labels, zero
        return Layout(tuple(axes), tuple(zeros))


@dataclass
class Channels:
    """All labels of a program, which of them are joined, and which must stay.

    products: (label, its factors), one for each way an axis was split.
    kept: why a label stays, by label.
    """

    products: list[tuple[int, Labels]] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    _sets: nx.utils.UnionFind = field(default_factory=nx.utils.UnionFind)
    _count: int = 0

    def fresh(self, size: int) -> Labels:
        """`size` labels joined with no other."""
        first = self._count
        self._count += size
        return tuple(range(first, self._count))

    def join(self, left: Labels, right: Labels) -> None:
        """Let two axes of one size share their fate, position by position."""
        if left is right:
            return
        if len(left) != len(right):
            raise Unfollowed(f"axes of {len(left)} and {len(right)} channels meet")
        for a, b in zip(left, right, strict=True):
            self._sets.union(a, b)

    def keep(self, labels: Labels, reason: str) -> None:
        """Forbid the removal of `labels`; the first reason stands."""
        for label in labels:
            self.kept.setdefault(label, reason)

    def root(self, label: int) -> int:
        """The representative of all labels joined with `label`."""
        return self._sets[label]  # type: ignore[no-any-return]

    def settle(self) -> None:
        """Join the factors of equal products: axes split twice are split alike."""
        changed = True
        while changed:
            changed = False
            first: dict[int, Labels] = {}
            for label, factors in self.products:
                known = first.setdefault(self.root(label), factors)
                if len(known) != len(factors):
                    reason = "is split into heads and channels in two ways that do not agree"
                    self.keep((label, *known, *factors), reason)
                    continue
                for a, b in zip(known, factors, strict=True):
                    if self.root(a) != self.root(b):
                        self._sets.union(a, b)
                        changed = True
