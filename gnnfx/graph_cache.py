"""What depends on the graph alone, computed once per graph and never served stale.

On a CPU a remembered graph is recognized by its contents: NumPy arrays share memory with tensors,
inference tensors have no version counter, and addresses are recycled, so nothing less is safe.
Comparing reads each index once, a small part of what one layer reads.  On a GPU, where a
comparison would wait for the device, an unchanged tensor object of unchanged version is taken
as unchanged, and everything else is compared.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Generic, TypeVar
from weakref import WeakMethod

import torch
from torch import Tensor

Structure = TypeVar("Structure")
_Key = tuple[object, ...]


@dataclass
class _Entry(Generic[Structure]):
    """One remembered graph: private copies of its inputs, and what was computed from them."""

    copies: list[Tensor]
    structure: Structure
    seen: list[tuple[weakref.ref[Tensor], int]] = field(default_factory=list)


class GraphCache(Generic[Structure]):
    """A bounded memory of structures, least recently used first out; safe for several threads.

    compute: the structure of a graph, from its tensors, which are private copies, and sizes; if a
        method, that of the owner of this memory.
    """

    def __init__(
        self, compute: Callable[[Sequence[Tensor], Sequence[int]], Structure], capacity: int = 4
    ) -> None:
        # An owner that is in a cycle with its memory would keep the buffers it works in until the
        # garbage collector comes by.
        self._compute = WeakMethod(compute) if isinstance(compute, MethodType) else lambda: compute
        self._capacity = capacity
        self._entries: OrderedDict[int, tuple[tuple[object, ...], _Entry[Structure]]] = (
            OrderedDict()
        )
        self._next = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Structure:
        """The structure of this graph, remembered or computed now."""
        key = (tuple(sizes), tuple((t.shape, t.dtype, t.device) for t in tensors))
        with self._lock:
            candidates = [(i, e) for i, (k, e) in reversed(self._entries.items()) if k == key]
        for number, entry in candidates:
            if _unchanged(entry, tensors):
                with self._lock:
                    if number in self._entries:
                        self._entries.move_to_end(number)
                return entry.structure
        copies = [t.detach().clone() if t.requires_grad else t.clone() for t in tensors]
        seen = _identity(tensors) if _on_gpu(tensors) else []
        compute = self._compute()
        assert compute is not None
        entry = _Entry(copies, compute(copies, sizes), seen)
        with self._lock:
            self._entries[self._next] = (key, entry)
            self._next += 1
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        return entry.structure

    def forget(self) -> None:
        """Release every remembered graph."""
        with self._lock:
            self._entries.clear()


def _on_gpu(tensors: Sequence[Tensor]) -> bool:
    return bool(tensors) and all(t.is_cuda for t in tensors)


def _identity(tensors: Sequence[Tensor]) -> list[tuple[weakref.ref[Tensor], int]]:
    """Object and version of each tensor, where versions exist."""
    if any(t.is_inference() for t in tensors):
        return []
    return [(weakref.ref(t), t._version) for t in tensors]


def _unchanged(entry: _Entry[Structure], tensors: Sequence[Tensor]) -> bool:
    if _on_gpu(tensors):
        if _same_objects(entry.seen, tensors):
            return True
        if all(map(torch.equal, entry.copies, tensors)):
            entry.seen = _identity(tensors)
            return True
        return False
    return all(map(torch.equal, entry.copies, tensors))


def _same_objects(seen: list[tuple[weakref.ref[Tensor], int]], tensors: Sequence[Tensor]) -> bool:
    """Whether these are the very tensors that were seen, at the same versions.

    References are resolved first: comparing them would compare the values of the tensors.
    """
    if len(seen) != len(tensors) or any(t.is_inference() for t in tensors):
        return False
    return all(
        reference() is tensor and version == tensor._version
        for (reference, version), tensor in zip(seen, tensors, strict=True)
    )
