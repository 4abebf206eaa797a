"""Ranges that follow the values shown in training: one pair (lo, hi) of tensors a site.

`gnnfx.observers` collects ranges from calibration data as numbers; these are buffers instead, so
that a checkpoint holds them, and updating them waits for no device.  In data-parallel training
every process takes the range of what all of them see.  Sources: section 3.3 and
appendix of Degree-Quant (Tailor et al., ICLR 2021) for percentiles that are widened over
batches and for moving averages with momentum 0.01.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from gnnfx import ranks
from gnnfx.kernels.quantize import code_range, scale_rows
from gnnfx.training_policy import Training

MOMENTUM = 0.01
_CANDIDATES = 64


class TrackedRange(nn.Module):
    """The range of one site: buffers `lo`, `hi` (float32, 0-d) and `seen`, the tensors it saw.

    Every range holds 0, which has a code in any case.
    bits: width of the codes, for the mean squared error.
    """

    lo: Tensor
    hi: Tensor
    seen: Tensor

    def __init__(self, training: Training, bits: int) -> None:
        super().__init__()
        self.policy = training
        self.bits = bits
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"{self.policy.observer}, lo={float(self.lo):.4g}, hi={float(self.hi):.4g}"

    @torch.no_grad()
    def update(
        self, x: Tensor, ignored: Tensor | None = None, row_scale: Tensor | None = None
    ) -> None:
        """Let the range follow float `x` [rows, ...], but for the rows `ignored` [rows].

        row_scale: float [rows], what each row is multiplied by.
        """
        rows = x.flatten(1) if x.dim() > 1 else x.view(-1, 1)
        found = self._current(rows, ignored if rows.numel() else None, row_scale)
        if found is None:
            return
        low, high = found[0].clamp(max=0), found[1].clamp(min=0)
        if self.policy.observer in ("minmax", "percentile"):
            torch.minimum(self.lo, low, out=self.lo)
            torch.maximum(self.hi, high, out=self.hi)
        else:
            first = self.seen == 0
            self.lo.copy_(torch.where(first, low, torch.lerp(self.lo, low, MOMENTUM)))
            self.hi.copy_(torch.where(first, high, torch.lerp(self.hi, high, MOMENTUM)))
        self.seen.add_(1)

    def _current(
        self, rows: Tensor, ignored: Tensor | None, row_scale: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """The range of these rows [R, C] alone, of all processes if there are several.

        None where there are no values.  A process that sees none takes part all the same.
        """
        parallel = ranks.count() > 1
        if self.policy.observer in ("percentile", "mse"):
            values = _some(rows, ignored, row_scale, self.policy.sample)
            if parallel:
                values = ranks.gather(values)
            if not values.numel():
                return None
            if self.policy.observer == "mse":
                return mse_range(values, self.bits)
            return percentile_range(values, self.policy.percentile)
        rows = scale_rows(rows, row_scale)
        if ignored is not None:
            kept = ~ignored
            rows = torch.stack([rows.amin(1)[kept], rows.amax(1)[kept]])
        if rows.numel():
            low, high = (end.float() for end in torch.aminmax(rows))
        elif parallel:
            low, high = self.lo.new_tensor(math.inf), self.hi.new_tensor(-math.inf)
        else:
            return None
        if parallel:
            low, high = ranks.join(low, high)
            if bool(low > high):
                return None
        return low, high


def _some(
    rows: Tensor, ignored: Tensor | None, row_scale: Tensor | None, most: int | None
) -> Tensor:
    """At most `most` values of the scaled rows [R, C], drawn evenly; zeros stand for ignored ones.

    Neither percentiles nor squared errors change with how many zeros there are.
    """
    count, channels = rows.shape
    if most is None or count * channels <= most:
        scaled = scale_rows(rows, row_scale)
        return (scaled if ignored is None else scaled[~ignored]).flatten().float()
    picked = torch.randint(count, (most,), device=rows.device)
    if ignored is not None and int(ignored.take(picked).sum()) > most // 2:
        left = (~ignored).nonzero()[:, 0]  # few rows are: draw from these alone
        if not len(left):
            return rows.new_empty(0, dtype=torch.float32)
        picked, ignored = left[torch.randint(len(left), (most,), device=rows.device)], None
    places = picked * channels + torch.randint(channels, picked.shape, device=rows.device)
    values = rows.take(places).float()
    if row_scale is not None:
        values *= row_scale.take(picked)
    return values if ignored is None else values.masked_fill_(ignored.take(picked), 0.0)


def percentile_range(values: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The k-th lowest and highest of those `values` [n] that are not zero, k = n * (1 - share).

    Zero has a code of its own in every range; counting the zeros of sparse features would cut off
    everything else.
    """
    # NumPy sorts with vectors, torch a twentieth as fast; zeros lie together once sorted.
    on_cpu = values.device.type == "cpu"
    ordered = torch.from_numpy(np.sort(values.numpy())) if on_cpu else values.sort().values
    below, end = (int(torch.searchsorted(ordered, 0.0, right=past)) for past in (False, True))
    count = values.numel() - (end - below)
    if count == 0:
        return values.new_zeros(()), values.new_zeros(())
    k = max(1, int(count * (1 - share)))
    low, high = (i if i < below else i + end - below for i in (k - 1, count - k))
    return ordered[low], ordered[high]


def mse_range(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The part of the range of `values` [n] whose codes have the least mean squared error."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    steps = code_range(bits)[1] - code_range(bits)[0]
    shares = torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES, device=values.device)
    lows, highs = (low * shares)[:, None], (high * shares)[:, None]
    scale = ((highs - lows) / steps).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((values - lows) / scale).round().clamp(0, steps)
    best = (codes * scale + lows - values).square().mean(1).argmin()
    return lows[best, 0], highs[best, 0]
