"""Run compiled loops on torch's own threads.

A kernel is machine code `void kernel(int64_t *args)`.  `args[0]` counts the pieces of work handed
out and `args[1]` how many there are; each thread takes the next piece until none is left, so a
kernel is correct on any number of threads, and several Python threads may launch at once.

Threads come from the OpenMP library that torch has loaded: a second pool would compete with
torch's workers, which keep spinning for a while after each parallel region.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Below this many operations, waking other threads costs more than they save.
_SMALL = 50_000
_PIECE = 100_000

Kernel = Callable[[int], None]


def launch(kernel: Kernel, pieces: int, args: list[int]) -> None:
    """Run `kernel` on `pieces` pieces of work; `args` follow the two counters."""
    block = array("q", (0, pieces, *args))
    where = block.buffer_info()[0]
    threads = min(torch.get_num_threads(), pieces)
    if threads <= 1:
        kernel(where)
    elif (parallel := _openmp_parallel()) is not None:
        parallel(kernel, where, threads, 0)
    else:
        list(_pool().map(kernel, [where] * threads))


def count_pieces(operations: int, most: int) -> int:
    """Into how many pieces to cut work of so many operations on at most `most` rows."""
    if operations < _SMALL:
        return 1
    return max(1, min(most, operations // _PIECE + 2 * torch.get_num_threads()))


def address(tensor: Tensor | None) -> int:
    """Where the data of a contiguous tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def _openmp_parallel() -> Any:
    """GOMP_parallel of the OpenMP library that torch runs on, or None.

    Others may be there: scikit-learn brings its own.  Asked of torch's library, the loader looks
    through what that one depends on.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        function = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="gnnfx")
