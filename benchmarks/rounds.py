"""Time calls that take from microseconds to half a minute in the same interleaved rounds.

Every call gets an equal share of a budget of seconds, so fast ones run in every round and slow ones
in a few, spread evenly.  Each round has another order, drawn at random, and a call of less than a
second runs twice in a row and the second is timed, as in a service that does nothing else: threads
of the peer before it, which wait for more work in a loop, and caches full of its data would tell
more of the order of peers than of the peers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gnnfx.measure import Spread

FEWEST, MOST = 3, 100
_FAST = 1.0  # seconds of a call up to which one before it is not timed
_SLOW = 4.0  # seconds of a call from which on two rounds must do

Rounds = dict[int, float]
"""Seconds by number of the round."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A call to time; `seconds` is what one took before, `prepare` is not timed."""

    run: Callable[[], object]
    seconds: float
    prepare: Callable[[], object] | None = None


def clock(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one call; on a GPU those between two events around it."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def interleave(calls: Mapping[str, Timed], budget: float, device: str = "cpu") -> dict[str, Rounds]:
    """Seconds of each call by round, about `budget` of them or the fewest rounds there are.

    Calls that are run and not timed come on top of that.
    """
    counts = {name: _count(call.seconds, budget / len(calls)) for name, call in calls.items()}
    total = max(counts.values())
    found: dict[str, Rounds] = {name: {} for name in calls}
    names = list(calls)
    for number in range(total):
        random.Random(number).shuffle(names)
        for name in names:
            count = counts[name]
            if (number + 1) * count // total == number * count // total:
                continue
            found[name][number] = _clock(calls[name], device)
    return found


def _clock(call: Timed, device: str) -> float:
    for _ in range(2 if call.seconds < _FAST else 1):
        if call.prepare is not None:
            call.prepare()
        spent = clock(call.run, device)
    return spent


def _count(seconds: float, share: float) -> int:
    fewest = FEWEST if seconds < _SLOW else FEWEST - 1
    return int(min(max(share / max(seconds, 1e-6), fewest), MOST))


def seconds(rounds: Rounds) -> Spread:
    """Median and quartiles of a call's seconds."""
    return Spread.of(list(rounds.values()))


def ratios(numerator: Rounds, denominator: Rounds) -> Spread:
    """Ratio of two calls' seconds, each of the rarer one to the other's in the nearest round."""
    rare, dense = sorted((numerator, denominator), key=len)
    pairs = [(number, min(dense, key=lambda other: abs(other - number))) for number in rare]
    if rare is numerator:
        return Spread.of([numerator[a] / denominator[b] for a, b in pairs])
    return Spread.of([numerator[b] / denominator[a] for a, b in pairs])
