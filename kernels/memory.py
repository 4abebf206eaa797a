"""Memory for large results on the CPU.

The first write to each page of fresh memory waits for the system to find and clear it, and the
allocator gives large blocks back when they are freed: filling 43 MB takes 15 ms, 4 ms in huge
pages, and 1 ms in memory that was used before.  So large results lie in huge pages where the
system lends them, and calls of a module use the buffers of its last call again.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_HUGE_PAGE = 2**21
_SEVERAL_PAGES = 4 * _HUGE_PAGE
_LARGE = 2**20


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous tensor on the CPU whose values are not set."""
    size = math.prod(shape) * dtype.itemsize
    if _of_thread.lent is None or size < _LARGE:
        return _fresh(shape, dtype)
    workspace, taken = _of_thread.lent
    return workspace.take(size, shape, dtype, taken)


class Workspace:
    """The large buffers of one module's last call.

    A buffer is used again once nothing refers to it: a result that somebody holds, as a tensor, a
    view or a NumPy array, stays as it is.  Those that a call has no use for are released.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.UntypedStorage] = []
        self._lock = threading.Lock()
        _workspaces.add(self)

    def release(self) -> None:
        """Give back the buffers that nothing refers to, and forget the others."""
        with self._lock:
            self._buffers = []

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Inside, large results of this thread lie in these buffers."""
        outer, taken = _of_thread.lent, set[int]()
        _of_thread.lent = self, taken
        try:
            yield
        finally:
            with self._lock:
                self._buffers = [b for b in self._buffers if id(b) in taken]
            _of_thread.lent = outer

    def take(
        self, size: int, shape: tuple[int, ...], dtype: torch.dtype, taken: set[int]
    ) -> Tensor:
        """A tensor in a free buffer of `size` bytes, or in a new one, noted in `taken`."""
        with self._lock:
            buffers = self._buffers
            places = range(len(buffers))
            fits = (i for i in places if buffers[i].nbytes() == size and _is_free(buffers, i))
            if (place := next(fits, None)) is not None:
                buffer = buffers[place]
                tensor = torch.empty(0, dtype=dtype, device="cpu")
                tensor.set_(buffer, 0, shape)  # type: ignore[call-overload]
            else:
                # Sizes have changed: what was kept of the last call must not add to this one's.
                unused = (i for i in places if id(buffers[i]) not in taken and _is_free(buffers, i))
                if (place := next(unused, None)) is not None:
                    del buffers[place]
                tensor = _fresh(shape, dtype)
                buffer = tensor.untyped_storage()
                buffers.append(buffer)
        taken.add(id(buffer))
        return tensor


def release_buffers() -> None:
    """Give back the buffers of all modules, before memory is measured."""
    for workspace in list(_workspaces):
        workspace.release()


class _OfThread(threading.local):
    """What `lend` has lent to the running thread: a workspace, and which buffers it took."""

    lent: tuple[Workspace, set[int]] | None = None


_of_thread = _OfThread()
_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


def _is_free(buffers: list[torch.UntypedStorage], position: int) -> bool:
    """Whether nothing but the list refers to a buffer, no other process either."""
    if buffers[position].is_shared():
        return False
    return _references(buffers, position) == _references_of_one_in_a_list()


def _references(buffers: list[torch.UntypedStorage], position: int) -> tuple[int, int]:
    """References to a buffer in C++ and in Python, as many as looking takes among them."""
    buffer = buffers[position]
    return torch._C._storage_Use_Count(buffer._cdata), sys.getrefcount(buffer)


@functools.cache
def _references_of_one_in_a_list() -> tuple[int, int]:
    return _references([torch.empty(1, device="cpu").untyped_storage()], 0)


def _fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    if tensor.nbytes >= _SEVERAL_PAGES and (advise := _madvise()) is not None:
        start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
        advise(start, end - start, mmap.MADV_HUGEPAGE)  # refused, it changes nothing
    return tensor


@functools.cache
def _madvise() -> Any:
    """The system's madvise, or None where there are no huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
