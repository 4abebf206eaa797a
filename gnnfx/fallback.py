"""Quantization under a limit: layers that cost too much of the user's metric fall back.

Layers are ordered by what each does to the outputs if it alone runs on integers, which is cheap to
find out; the metric decides.  From the costliest on, layers get 8 bits where they had fewer, then
float32, until the limit holds; then each change that turns out not to be needed is taken back.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnfx.backend.module import OptimizedModule
from gnnfx.errors import InputError, PolicyError
from gnnfx.noise import sqnr
from gnnfx.policy import Bits, Policy
from gnnfx.trials import Sensitivity, Trial, Trials

Build = Callable[[Policy], tuple[OptimizedModule, tuple[str, ...]]]
Width = tuple[int, int]  # bits of weights and of read values
_FLOAT: Width = (32, 32)


@dataclass(frozen=True)
class Limit:
    """How far `metric`, of which more is better, may fall below the model's."""

    max_drop: float
    metric: Callable[[nn.Module], Any] | None

    def __post_init__(self) -> None:
        drop = self.max_drop
        number = isinstance(drop, (int, float)) and not isinstance(drop, bool)
        if not number or not 0 <= drop < math.inf:
            raise InputError(f"max_drop must be a finite number, 0 or more, got {drop!r}")
        if self.metric is None or not callable(self.metric):
            raise InputError(
                f"max_drop needs metric, a function of a module that returns a number, "
                f"got {self.metric!r}"
            )

    def measure(self, module: nn.Module) -> float:
        """The metric of `module`; raises InputError if it is not a finite number."""
        assert self.metric is not None
        with torch.no_grad():
            value = self.metric(module)
        try:
            number = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"metric must return a finite number, got {value!r}")
        return number


def fall_back(
    eager: nn.Module, policy: Policy, build: Build, limit: Limit, sample: tuple[Any, Any]
) -> OptimizedModule:
    """The module of `policy` with as many layers on integers as `limit` was found to allow.

    eager: the model in eval mode.
    build: the module of a policy, and the module paths of its layers that run on integers.
    sample: args and kwargs of a call, whose outputs order the layers.

    Raises InputError if the metric falls with every layer in float32, PolicyError if the policy
    quantizes nothing.
    """
    if policy.quantize is None:
        raise PolicyError("max_drop limits what quantization costs, but the policy has none")
    model_metric = limit.measure(eager)
    module, layers = build(policy)
    search = _Search(policy, build, limit, model_metric, layers)
    if search.judge("as asked", module):
        return search.finish(module, ())
    outputs = _outputs(eager, sample)
    found = []
    for layer in layers:
        alone = {other: _FLOAT for other in layers if other != layer}
        rounded, _ = build(search.policy_of(alone))
        found.append(Sensitivity(layer, sqnr(outputs, _outputs(rounded, sample))))
    found.sort(key=lambda s: s.sqnr)
    module = search.restore(search.descend([s.layer for s in found]))
    return search.finish(module, tuple(found))


class _Search:
    """The widths of the layers as they are now, and all trials so far."""

    def __init__(
        self,
        policy: Policy,
        build: Build,
        limit: Limit,
        model_metric: float,
        layers: Sequence[str],
    ) -> None:
        assert policy.quantize is not None
        self.policy, self.quantize, self.build = policy, policy.quantize, build
        self.limit, self.model_metric = limit, model_metric
        self.asked: dict[str, Width] = {
            layer: (
                policy.quantize.weight_bits_of(layer),
                policy.quantize.activation_bits_of(layer),
            )
            for layer in layers
        }
        self.widths = dict(self.asked)
        self.trials: list[Trial] = []
        self.changes: list[tuple[str, Width]] = []  # each layer, and the width that it had

    def policy_of(self, changed: dict[str, Width]) -> Policy:
        """The policy with other widths for some layers."""
        widths = {**self.asked, **changed}
        if all(width == _FLOAT for width in widths.values()):
            return replace(self.policy, quantize=None, skip=())
        floats = tuple(glob.escape(x) for x, width in widths.items() if width == _FLOAT)
        raised = {
            glob.escape(layer): Bits(*width)  # type: ignore[arg-type]
            for layer, width in widths.items()
            if width not in (_FLOAT, self.asked[layer])
        }
        quantize = replace(self.quantize, overrides={**self.quantize.overrides, **raised})
        return replace(self.policy, quantize=quantize, skip=(*self.policy.skip, *floats))

    def judge(self, change: str, module: OptimizedModule, may_stay: bool = True) -> bool:
        """Whether the metric of `module` is within the limit; remembers it as a trial."""
        metric = self.limit.measure(module)
        good = self.model_metric - metric <= self.limit.max_drop
        integer = [width for width in self.widths.values() if width != _FLOAT]
        bits = sum(map(sum, self.widths.values())) / (2 * len(self.widths))
        self.trials.append(Trial(change, len(integer), bits, metric, may_stay or good))
        return good

    def descend(self, order: Sequence[str]) -> OptimizedModule:
        """Raise widths, of the first layers first, until the limit holds."""
        for width in ((8, 8), _FLOAT):
            for layer in order:
                if min(self.widths[layer]) >= min(width):
                    continue
                self.changes.append((layer, self.widths[layer]))
                self.widths[layer] = (max(self.widths[layer][0], width[0]), width[1])
                module, _ = self.build(self.policy_of(self.widths))
                if self.judge(f"{layer or '(top)'}: {_text(self.widths[layer])}", module):
                    return module
        last = self.trials[-1].metric
        raise InputError(
            f"metric is {self.model_metric:.6g} of the model and {last:.6g} of its program with "
            f"every layer in float32, which is more than max_drop={self.limit.max_drop:g} below; "
            f"expected a metric that gives the same for the same outputs"
            + (", or a policy that prunes less" if self.policy.prune is not None else "")
        )

    def restore(self, module: OptimizedModule) -> OptimizedModule:
        """Take back, last first, each change but the last that the limit does not need."""
        needed = {self.changes[-1][0]}
        for layer, width in reversed(self.changes[:-1]):
            if layer in needed:
                continue
            raised, self.widths[layer] = self.widths[layer], width
            candidate, _ = self.build(self.policy_of(self.widths))
            text = f"{layer or '(top)'}: back to {_text(width)}"
            if self.judge(text, candidate, may_stay=False):
                module = candidate
            else:
                self.widths[layer] = raised
                needed.add(layer)
        return module

    def finish(
        self, module: OptimizedModule, sensitivities: tuple[Sensitivity, ...]
    ) -> OptimizedModule:
        """`module` with all trials in its report."""
        drop = float(self.limit.max_drop)
        trials = Trials(drop, self.model_metric, sensitivities, tuple(self.trials))
        module.report = replace(module.report, trials=trials)
        return module


def _text(width: Width) -> str:
    if width == _FLOAT:
        return "float32"
    return f"int{width[0]}" if width[0] == width[1] else f"int{width[0]} of int{width[1]}"


def _outputs(module: nn.Module, sample: tuple[Any, Any]) -> list[Tensor]:
    """The float results of one call."""
    args, kwargs = sample
    with torch.no_grad():
        leaves = pytree.tree_leaves(module(*args, **kwargs))
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
