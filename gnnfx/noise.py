"""How large a change is beside what it changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def sqnr(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Signal power over that of the difference, in dB, at most 300."""
    signal = sum(float(x.double().square().sum()) for x in wanted)
    noise = sum(float((y - x).double().square().sum()) for x, y in zip(wanted, got, strict=True))
    if noise <= 1e-30 * signal:
        return 300.0
    return 10 * math.log10(max(signal, 1e-300) / noise)
