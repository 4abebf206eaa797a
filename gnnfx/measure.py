"""How long a call takes and how much memory it needs.  Seconds and bytes throughout.

Timings of several calls are taken in interleaved rounds: every round runs each call once, and the
call that goes first changes from round to round, so that a machine that slows down or speeds up
does so for all of them.  Medians and quartiles are reported, never means: one interrupted call
would move a mean.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from gnnfx.kernels.memory import release_buffers

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, sample: list[float]) -> Spread:
        """Median and quartiles of `sample`, which holds one value or more."""
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        q1, median, q3 = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(median, q1, q3)


def interleaved_seconds(
    calls: Mapping[str, Callable[[], object]],
    *,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    budget: float = 5.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    warmup: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, round by round: the lists have one entry per round, in the same order.

    `prepare[name]` runs before each `calls[name]` and is not timed.  `warmup` rounds run first and
    are dropped; the last of them says how many rounds fit into `budget` seconds, between
    `min_rounds` and `max_rounds`.  `progress` is told the number of rounds done and planned.
    """
    before = prepare or {}
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for _ in range(max(1, warmup)):
        started = time.perf_counter()
        for name in names:
            _timed(calls[name], before.get(name))
    round_seconds = max(time.perf_counter() - started, 1e-6)
    rounds = int(min(max(budget / round_seconds, min_rounds), max_rounds))
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_timed(calls[name], before.get(name)))
        if progress is not None:
            progress(turn + 1, rounds)
    return seconds


def _timed(call: Callable[[], object], prepare: Callable[[], object] | None) -> float:
    if prepare is not None:
        prepare()
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(numerator: list[float], denominator: list[float]) -> Spread:
    """Spread of the ratios of two interleaved lists of seconds, round by round."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])


def new_graphs(edge_index: Tensor) -> Callable[[], Tensor]:
    """A function that returns the same graph as a new tensor with new content at every call.

    The edges are rotated by a different number of places each time: the set of edges, and so every
    answer, stays the same, their order in memory stays as local as it was, and nothing that
    remembers an earlier tensor, by identity or by content, can recognise it.
    """
    edges = edge_index.shape[1]
    turn = 0

    def rotate() -> Tensor:
        nonlocal turn
        turn += 1
        return edge_index.roll(turn % max(edges, 1), dims=1)

    return rotate


def peak_bytes(
    call: Callable[[], object], *, repeats: int = 3, device: str = "cpu", warmup: bool = True
) -> int:
    """Bytes that one call adds to the process at its highest point, its result included.

    On a CUDA device this is what PyTorch's allocator counts.  On the CPU it is the growth of the
    resident set, so it sees every allocator (torch, numpy, Numba, oneDNN): buffers that gnnfx keeps
    for the next call and free heap pages are first returned to the system (`malloc_trim`), then
    Linux is asked to forget the highest resident set so far (`/proc/self/clear_refs`), and after
    the call the new highest value (`VmHWM`) is compared with the resident set from before.  The
    median of `repeats` calls is returned; before them, `warmup` runs the call once unmeasured.

    Limits: memory that is reserved but never written is not counted; the kernel counts pages per
    thread in batches, so differences below about 1 MB are noise; other threads of the process are
    counted too.  Where the highest value cannot be reset (not Linux, or not permitted) a thread
    samples the resident set every 0.5 ms instead, which can miss short peaks.
    """
    if warmup:
        call()
    measure = _cuda_growth if device.startswith("cuda") else _resident_growth
    return int(statistics.median(measure(call) for _ in range(repeats)))


def _cuda_growth(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before


def _resident_growth(call: Callable[[], object]) -> int:
    release_buffers()
    _trim_heap()
    try:
        _CLEAR_REFS.write_text("5")
        before = _status_bytes("VmRSS")
    except OSError:
        return _sampled_growth(call)
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def _sampled_growth(call: Callable[[], object]) -> int:
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    result = call()
    peak = max(peak, process.memory_info().rss)
    done.set()
    thread.join()
    del result
    return max(0, int(peak) - int(before))


def _trim_heap() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # a C library without malloc_trim: free pages stay counted as resident
        return


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of `module`; shared memory counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for tensor in [*module.parameters(), *module.buffers()]:
        size = tensor.numel() * tensor.element_size()
        key = (id(tensor), size) if tensor.is_mkldnn else (tensor.data_ptr(), size)
        if size and key not in seen:
            seen.add(key)
            total += size
    return total
