"""What the user asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from gnnfx.errors import PolicyError
from gnnfx.training_policy import (
    Training,
    check,
    check_choice,
    check_percentile,
    is_number,
    is_whole,
)

PruneMethod = Literal["structured", "global-structured", "fine-grained", "global"]
Observer = Literal["minmax", "moving-average", "percentile", "mse"]


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern (fnmatch) names `module`, or a module that it is a part of."""
    parts = module.split(".")
    return any(fnmatchcase(".".join(parts[: n + 1]), pattern) for n in range(len(parts)))


def _check_patterns(overrides: object) -> None:
    fits = isinstance(overrides, Mapping) and all(isinstance(p, str) for p in overrides)
    check(fits, "overrides", "be a dict with patterns as its keys", overrides)


@dataclass(frozen=True, slots=True)
class Bits:
    """Widths of one layer; None: the policy's.

    activation: of the values that the layer reads.  A value that several layers read gets the most
        bits that one of them asks for.
    """

    weight: Literal[8, 4, 2] | None = None
    activation: Literal[8, 4, 2] | None = None

    def __post_init__(self) -> None:
        check_choice("weight", self.weight, (8, 4, 2, None))
        check_choice("activation", self.activation, (8, 4, 2, None))


@dataclass(frozen=True, slots=True)
class Quantize:
    """Integer execution: bits of weights and activations, and how ranges are observed.

    observer: how static activation ranges are chosen from calibration data.
    percentile: share of values inside the range, for observer='percentile'.
    scales: one scale for all rows of a value ('tensor'), or one for the nodes of each 'degree'
        (in-degrees of as many binary digits), where rows are not summed together: in front of
        linear layers.  Needs calibration or training.
    layers: run integers where they are 'faster', or in 'all' layers that have integer kernels.
    training: how `gnnfx.prepare` trains with rounding.
    overrides: other widths by pattern of the layer's module path, as for `Policy.skip`; the last
        match that gives a width wins.
    """

    weight_bits: Literal[8, 4, 2] = 8
    activation_bits: Literal[8, 4, 2] = 8
    observer: Observer = "minmax"
    percentile: float = 0.999
    scales: Literal["tensor", "degree"] = "tensor"
    layers: Literal["faster", "all"] = "faster"
    training: Training = field(default_factory=Training)
    overrides: Mapping[str, Bits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("weight_bits", self.weight_bits, (8, 4, 2))
        check_choice("activation_bits", self.activation_bits, (8, 4, 2))
        check_choice("scales", self.scales, ("tensor", "degree"))
        check_choice("layers", self.layers, ("faster", "all"))
        check_choice("observer", self.observer, ("minmax", "moving-average", "percentile", "mse"))
        check_percentile(self.percentile)
        training = isinstance(self.training, Training)
        check(training, "training", "be a gnnfx.Training", self.training)
        _check_patterns(self.overrides)
        for pattern, bits in self.overrides.items():
            check(isinstance(bits, Bits), f"overrides[{pattern!r}]", "be a gnnfx.Bits", bits)

    def weight_bits_of(self, module: str) -> int:
        """Width of the weights of the layer at the path `module`."""
        found = [b.weight for p, b in self.overrides.items() if b.weight and matches(p, module)]
        return found[-1] if found else self.weight_bits

    def activation_bits_of(self, module: str) -> int:
        """Width of the values that the layer at the path `module` reads."""
        found = [
            b.activation for p, b in self.overrides.items() if b.activation and matches(p, module)
        ]
        return found[-1] if found else self.activation_bits


@dataclass(frozen=True, slots=True)
class Prune:
    """Removal of weights, or of whole channels, heads or layers.

    ratio: share of the channels (heads, weights) of each layer that goes, or share of the layers.
    method: 'structured' removes the channels or heads of each layer that matter least and leaves
        smaller layers, 'global-structured' those of the whole model; 'fine-grained' zeroes the
        weights of each layer that matter least, 'global' those of the whole model.
    criterion: what matters: norms of weights, gradient times weight, scales of batch norms, or
        what aggregation passes on in an example graph.
    units: what structured methods count and remove: 'channels', 'heads' of attention, or 'layers'
        of message passing that a residual or skip connection leads around.
    overrides: other ratios by pattern (fnmatch) of the layer or its weight, the last match wins.
    schedule: how a Pruner reaches the ratio: at once at step `end`, in equal parts, or cubically.
    begin, end, every: the steps of a schedule's first, last and each further increase.
    """

    ratio: float = 0.5
    method: PruneMethod = "structured"
    criterion: Literal["l1", "l2", "taylor", "batch-norm", "aggregation", "random"] = "l2"
    units: Literal["channels", "heads", "layers"] = "channels"
    overrides: Mapping[str, float] = field(default_factory=dict)
    schedule: Literal["one-shot", "iterative", "cubic"] = "one-shot"
    begin: int = 0
    end: int = 0
    every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        methods = ("structured", "global-structured", "fine-grained", "global")
        check_choice("method", self.method, methods)
        criteria = ("l1", "l2", "taylor", "batch-norm", "aggregation", "random")
        check_choice("criterion", self.criterion, criteria)
        check_choice("units", self.units, ("channels", "heads", "layers"))
        check_choice("schedule", self.schedule, ("one-shot", "iterative", "cubic"))
        _check_patterns(self.overrides)
        for name, ratio in {"ratio": self.ratio, **self.overrides}.items():
            check(is_number(ratio) and 0.0 <= ratio < 1.0, name, "lie in [0, 1)", ratio)
        for name in ("begin", "end", "every", "seed"):
            step = getattr(self, name)
            check(is_whole(step), name, "be a whole number", step)
        if not self.removes and self.criterion in ("batch-norm", "aggregation"):
            raise PolicyError(
                f"criterion {self.criterion!r} scores channels; with method {self.method!r} "
                f"expected 'l1', 'l2', 'taylor' or 'random'"
            )
        if self.units == "layers" and self.criterion == "aggregation":
            raise PolicyError(
                "criterion 'aggregation' scores channels; with units 'layers' "
                "expected 'l1', 'l2', 'taylor', 'batch-norm' or 'random'"
            )
        if not 0 <= self.begin <= self.end or self.every < 1:
            raise PolicyError(
                f"expected 0 <= begin <= end and every >= 1, got begin={self.begin}, "
                f"end={self.end}, every={self.every}"
            )

    @property
    def removes(self) -> bool:
        """Whether channels or heads go, rather than single weights."""
        return self.method in ("structured", "global-structured")


@dataclass(frozen=True, slots=True)
class Policy:
    """A request to `gnnfx.optimize`.

    quantize: how to quantize, or None to keep float32.
    skip: modules (fnmatch patterns of their paths, e.g. 'convs.0') that stay float32, with all
        their parts; a pattern that matches no layer is an error.
    prune: what to remove before that, or None to keep every weight.
    """

    quantize: Quantize | None = None
    skip: tuple[str, ...] = field(default=())
    prune: Prune | None = None

    def __post_init__(self) -> None:
        quantize, prune = self.quantize, self.prune
        rounds = quantize is None or isinstance(quantize, Quantize)
        check(rounds, "quantize", "be a gnnfx.Quantize or None", quantize)
        check(prune is None or isinstance(prune, Prune), "prune", "be a gnnfx.Prune or None", prune)
        patterns = isinstance(self.skip, (tuple, list)) and all(type(p) is str for p in self.skip)
        check(patterns, "skip", "be a tuple of patterns", self.skip)
        if quantize is None or quantize.training.placement == "kernels":
            return
        if self.skip or quantize.overrides:
            raise PolicyError(
                f"placement='paper' rounds everywhere alike; expected no skip and no overrides, "
                f"got skip={self.skip}, overrides={dict(quantize.overrides)}"
            )

    def skipped_by(self, module: str) -> str | None:
        """The first pattern of `skip` that the path `module` matches, or None."""
        return next((p for p in self.skip if matches(p, module)), None)

    def patterns_of(self, module: str) -> tuple[str, ...]:
        """The patterns of `skip` and of overrides that the path `module` matches.

        Layers become one only if these are the same.
        """
        overrides = () if self.quantize is None else self.quantize.overrides
        return tuple(p for p in (*self.skip, *overrides) if matches(p, module))


# Degree-Quant's runs clip gradients, take percentiles as ranges and protect nodes of high degree.
# At 4 bits the paper cuts off 1 % at each end; with 5 % of what is not zero, GIN's heavy tails
# leave enough codes for the rest.
_INT8_DQ = Training("clipped", "percentile", 0.999, protect=(0.0, 0.1))
_INT4_DQ = Training("clipped", "percentile", 0.95, protect=(0.1, 0.2))

PRESETS: dict[str, Policy] = {
    "fp32": Policy(),
    "int8": Policy(quantize=Quantize()),
    "int4": Policy(quantize=Quantize(weight_bits=4, observer="mse")),
    "int8-dq": Policy(quantize=Quantize(layers="all", training=_INT8_DQ)),
    "degree-quant-paper": Policy(Quantize(training=replace(_INT8_DQ, placement="paper"))),
    "int4-dq": Policy(quantize=Quantize(4, 4, observer="mse", layers="all", training=_INT4_DQ)),
}


def as_policy(policy: str | Policy) -> Policy:
    """The policy behind a preset name; raises PolicyError for an unknown one."""
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str) or policy not in PRESETS:
        raise PolicyError(
            f"policy must be one of {sorted(PRESETS)} or a gnnfx.Policy, got {policy!r}"
        )
    return PRESETS[policy]
