"""How far the outputs of a program may be from those of the model that it was made from."""

from __future__ import annotations

from torch import Tensor

# Sums are reordered, never rounded more coarsely: float32 noise on outputs of order 1.
_TOLERANCE = 1e-4


def disagreement(want: Tensor, have: Tensor) -> str | None:
    """How `have` differs from the model's `want` by more than the order of sums, or None."""
    if want.shape != have.shape or want.dtype != have.dtype:
        return (
            f"is {have.dtype} {tuple(have.shape)} where the model's is "
            f"{want.dtype} {tuple(want.shape)}"
        )
    if not want.numel():
        return None
    wanted, gap = want.double(), (want.double() - have.double()).abs()
    # Infinities and NaN have no difference; they must be where the model has them.
    gap[(want == have) | (want.isnan() & have.isnan())] = 0.0
    worst = float(gap.max())
    scale = max(float(wanted.nan_to_num(0.0, 0.0, 0.0).abs().max()), 1e-6)
    if worst <= _TOLERANCE * scale:
        return None
    return f"differs by {worst:.3g} from the model's (scale {scale:.3g})"
