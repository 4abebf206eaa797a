"""Keep of a pipeline what is faster on the user's own graph.

A pass that has a choice asks `ctx.allows(instr)` first, which declares that it has one.  The module
is built once with every rewrite, then once without each, and what takes fewer milliseconds stays.
No alternative rounds more than the policy allows: those of float32 programs are float32,
those of integer programs leave layers in float32, and last all of them, as the first integers cost
a small graph more than they save.  In the end the model itself is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from gnnfx.backend.module import KeptModel, OptimizedModule
from gnnfx.errors import PolicyError
from gnnfx.measure import interleaved_seconds
from gnnfx.pass_manager import Site
from gnnfx.report import Report
from gnnfx.tuned import Alternative, Tuned

Build = Callable[[frozenset[Site]], tuple[OptimizedModule, tuple[Site, ...]]]
# What an alternative must save to be taken: less than this is the spread of two equal programs.
# Float32 need not save anything, since it rounds nothing.
_LEAST_GAIN, _LEAST_GAIN_IN_FLOAT = 0.03, 0.0
_SECONDS = 0.5
_MOST_ROUNDS = 50


def keep_fastest(
    eager: nn.Module,
    build: Build,
    build_in_float: Build | None,
    sample: tuple[tuple[Any, ...], dict[str, Any]],
    kept_report: Callable[[str], Report],
) -> OptimizedModule:
    """The fastest module that `build` makes, or `eager` as it is where that is faster still.

    build: the module without some rewrites, and the rewrites that it could do without.
    build_in_float: the same with all layers in float32, where `build` quantizes.
    sample: args and kwargs of the call that is timed, on a graph that is remembered.
    kept_report: the report of a model that runs as it is for a reason.
    """
    timed: list[Alternative] = []
    best = _search(build, build(frozenset()), sample, timed)
    if isinstance(best, KeptModel):
        return best
    if build_in_float is not None:
        in_float = build_in_float(frozenset())
        tried = "all layers in float32", in_float[0]
        if _compare(*tried, best, sample, timed, _LEAST_GAIN_IN_FLOAT):
            best = _search(build_in_float, in_float, sample, timed)
    if _compare("the model as it is", eager, best, sample, timed):
        last = timed[-1]
        reason = (
            f"measured faster as it is: {last.milliseconds:.3f} ms a call on the example, "
            f"{last.best:.3f} ms optimized"
        )
        best = KeptModel(eager, kept_report(reason))
    best.report = replace(best.report, tuned=Tuned(tuple(timed)))
    return best


def _search(
    build: Build,
    built: tuple[OptimizedModule, tuple[Site, ...]],
    sample: tuple[tuple[Any, ...], dict[str, Any]],
    timed: list[Alternative],
) -> OptimizedModule:
    """The fastest that is left when the rewrites of a module that was built are taken in turn."""
    best, waiting = built
    if isinstance(best, KeptModel):
        return best
    declined: frozenset[Site] = frozenset()
    seen, queue = set(waiting), list(waiting)
    while queue:
        site = queue.pop(0)
        try:
            candidate, more = build(declined | {site})
        except PolicyError:
            continue  # nothing would be left to quantize
        if isinstance(candidate, KeptModel) or candidate.ir() == best.ir():
            continue
        if _compare(f"without {site}", candidate, best, sample, timed):
            declined, best = declined | {site}, candidate
            queue += [new for new in more if new not in seen]
            seen.update(more)
    return best


def _compare(
    change: str,
    candidate: nn.Module,
    best: nn.Module,
    sample: tuple[tuple[Any, ...], dict[str, Any]],
    timed: list[Alternative],
    least_gain: float = _LEAST_GAIN,
) -> bool:
    """Whether `candidate` is faster than `best`; both are added to `timed`."""
    args, kwargs = sample
    calls: dict[str, Callable[[], object]] = {
        "candidate": lambda: candidate(*args, **kwargs),
        "best": lambda: best(*args, **kwargs),
    }
    with torch.no_grad():
        seconds = interleaved_seconds(calls, budget=_SECONDS, max_rounds=_MOST_ROUNDS)
    mine, other = (median(seconds[name]) for name in ("candidate", "best"))
    least = min(seconds["candidate"]) < (1 - least_gain) * min(seconds["best"])
    # On a busy machine medians of a few rounds may be far off, both they and the least seldom.
    kept = least and mine < (1 - least_gain) * other
    timed.append(Alternative(change, 1e3 * mine, 1e3 * other, kept))
    return kept
