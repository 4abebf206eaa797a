"""How far the outputs of a program may be from those of the model that it was made from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Sums are reordered, never rounded more coarsely: float32 noise on outputs of order 1.
_TOLERANCE = 1e-4
# Where a model magnifies rounding (the root of a variance near 0), two orders of one sum differ by
# more than that; then the result must be about as near to the exact one as the model's own.
_ROUNDING = 10.0
# Where the model's own rounding changes this share of its result, it has made another choice.
_CHOICE = 0.01


def disagreement(want: Tensor, have: Tensor) -> str | None:
    """How `have` differs from the model's `want` by more than the order of sums, or None."""
    if want.shape != have.shape or want.dtype != have.dtype:
        return (
            f"is {have.dtype} {tuple(have.shape)} where the model's is "
            f"{want.dtype} {tuple(want.shape)}"
        )
    worst, scale = _distance(want, have), _scale(want)
    if worst <= _TOLERANCE * scale:
        return None
    return f"differs by {worst:.3g} from the model's (scale {scale:.3g})"


def is_as_exact(exact: Tensor, want: Tensor, have: Tensor) -> bool:
    """Whether `have` is as near to the exact result as the model's `want`: the rest is rounding."""
    rounding = _distance(exact, want)
    if not math.isfinite(rounding) or rounding > _CHOICE * _scale(want):
        return False
    return _distance(exact, have) <= _ROUNDING * rounding


def _scale(value: Tensor) -> float:
    """The largest finite magnitude, or a little more than 0 where there is none."""
    finite = value[value.isfinite()].double().abs()
    return max(float(finite.max()) if finite.numel() else 0.0, 1e-6)


def _distance(want: Tensor, have: Tensor) -> float:
    """The largest difference; inf for another shape, or where only one of the two is a number."""
    if want.shape != have.shape or not torch.equal(want.isnan(), have.isnan()):
        return float("inf")
    if want.numel() == 0:
        return 0.0
    want, have = want.double(), have.double()
    difference = torch.where(want == have, 0.0, (want - have).abs())
    return float(difference.nan_to_num(nan=0.0, posinf=float("inf")).max())
