"""What the user asks for while a quantized model trains.

Sources: Degree-Quant (Tailor, Fernandez-Marques, Lane; ICLR 2021) for protective masks, ranges and
the clipped estimator; LSQ (Esser et al.; ICLR 2020) for learned steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gnnfx.errors import PolicyError

Estimator = Literal["straight-through", "clipped", "learned-step"]
TrainingObserver = Literal["minmax", "moving-average", "percentile", "mse"]


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
        for name, allowed in (
            ("estimator", ("straight-through", "clipped", "learned-step")),
            ("observer", ("minmax", "moving-average", "percentile", "mse")),
            ("mask", ("forward", "layer")),
            ("placement", ("kernels", "paper")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise PolicyError(f"{name} must be one of {list(allowed)}, got {value!r}")
        if not 0.5 < self.percentile <= 1.0:
            raise PolicyError(f"percentile must lie in (0.5, 1], got {self.percentile}")
        if self.sample is not None and self.sample < 1:
            raise PolicyError(f"sample must be 1 or more, or None, got {self.sample}")
        if self.protect is not None and not _is_span(self.protect):
            raise PolicyError(
                f"protect must be (p_min, p_max) with 0 <= p_min <= p_max <= 1, got {self.protect}"
            )


def _is_span(span: tuple[float, float]) -> bool:
    return len(span) == 2 and 0.0 <= span[0] <= span[1] <= 1.0
