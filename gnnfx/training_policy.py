"""What the user asks for while a quantized model trains.

Sources: Degree-Quant (Tailor, Fernandez-Marques, Lane; ICLR 2021) for protective masks, ranges and
the clipped estimator; LSQ (Esser et al.; ICLR 2020) for learned steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from gnnfx.errors import PolicyError

Estimator = Literal["straight-through", "clipped", "learned-step"]
TrainingObserver = Literal["minmax", "moving-average", "percentile", "mse"]


def check(holds: bool, name: str, expected: str, value: object) -> None:
    """Raise PolicyError unless a field is as expected."""
    if not holds:
        raise PolicyError(f"{name} must {expected}, got {value!r}")


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise PolicyError unless a field is one of those allowed."""
    check(value in allowed, name, f"be one of {list(allowed)}", value)


def is_number(value: object) -> bool:
    """Whether `value` is a number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Training:
    """How values are rounded in training, and how their ranges are found.

    estimator: gradient of rounding.  'straight-through' passes it unchanged, 'clipped' not where
        the code is at an end of its range and does not stand for zero, 'learned-step' not where
        the value is outside of the range, and the step is trained.
    observer: how the range of an activation follows the values that training shows it.
    percentile: share of the values other than zero that are inside the range at each end, for
        observer='percentile'.
    sample: the most values of a tensor that 'percentile' and 'mse' look at, drawn evenly; None for
        all.
    symmetric: ranges of activations with negative values lie symmetrically around zero.
    protect: (p_min, p_max): probability that a node stays float32 in one forward, from the lowest
        to the highest in-degree of its graph; None protects none.  A perceptron inside a layer
        (GIN's) rounds all nodes.
    mask: whether nodes to protect are drawn anew once per 'forward' or for each 'layer'.
    placement: round where integer 'kernels' do, or where the 'paper' of Degree-Quant does, which
        no integer program executes.
    """

    estimator: Estimator = "straight-through"
    observer: TrainingObserver = "moving-average"
    percentile: float = 0.999
    sample: int | None = 2**12
    symmetric: bool = False
    protect: tuple[float, float] | None = None
    mask: Literal["forward", "layer"] = "forward"
    placement: Literal["kernels", "paper"] = "kernels"

    def __post_init__(self) -> None:
        estimators = ("straight-through", "clipped", "learned-step")
        check_choice("estimator", self.estimator, estimators)
        observers = ("minmax", "moving-average", "percentile", "mse")
        check_choice("observer", self.observer, observers)
        check_choice("mask", self.mask, ("forward", "layer"))
        check_choice("placement", self.placement, ("kernels", "paper"))
        check_percentile(self.percentile)
        enough = self.sample is None or (is_whole(self.sample) and self.sample >= 1)
        check(enough, "sample", "be 1 or more, or None", self.sample)
        fits = self.protect is None or _is_span(self.protect)
        expected = "be (p_min, p_max) with 0 <= p_min <= p_max <= 1"
        check(fits, "protect", expected, self.protect)


def check_percentile(share: float) -> None:
    """Raise PolicyError for what is no share of more than half."""
    check(is_number(share) and 0.5 < share <= 1.0, "percentile", "lie in (0.5, 1]", share)


def _is_span(span: object) -> bool:
    pair = isinstance(span, (tuple, list)) and len(span) == 2 and all(map(is_number, span))
    return pair and 0.0 <= span[0] <= span[1] <= 1.0  # type: ignore[index]
