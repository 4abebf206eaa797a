"""When and how far to prune during training.

The cubic schedule is that of Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878): fast
at first, while much is redundant, and slow towards the end.
"""

from __future__ import annotations

from gnnfx.policy import Prune


def share_due(prune: Prune, step: int) -> float | None:
    """The share of the ratio that is due at `step` (from 0), or None if nothing changes there."""
    due = step == prune.end or (step < prune.end and (step - prune.begin) % prune.every == 0)
    if step < prune.begin or not due:
        return None
    if step == prune.end:
        return 1.0
    updates = -(-(prune.end - prune.begin) // prune.every) + 1
    done = (step - prune.begin) // prune.every
    match prune.schedule:
        case "one-shot":
            return None
        case "iterative":
            return (done + 1) / updates
        case "cubic":
            return 1.0 - (1.0 - (step - prune.begin) / (prune.end - prune.begin)) ** 3
