"""Observers: the range [lo, hi] that a quantizer should cover, from the values it will see.

Sources: min-max, moving average and percentile as in Degree-Quant (Tailor et al., ICLR 2021,
section 3); the MSE search as in Banner et al., NeurIPS 2019, over a histogram.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from gnnfx.policy import Quantize

Range = tuple[float, float]
_MOMENTUM = 0.01
_BINS = 2048
_CANDIDATES = 100


class Observer(abc.ABC):
    """Collects what passes through one place of a program."""

    @abc.abstractmethod
    def update(self, x: Tensor) -> None:
        """See one more float tensor with at least one element."""

    @property
    @abc.abstractmethod
    def range(self) -> Range:
        """(lo, hi), before zero is included."""


class MinMaxObserver(Observer):
    """The lowest and highest value ever seen."""

    def __init__(self) -> None:
        self.lo, self.hi = float("inf"), float("-inf")

    def update(self, x: Tensor) -> None:
        self.lo, self.hi = min(self.lo, float(x.min())), max(self.hi, float(x.max()))

    @property
    def range(self) -> Range:
        return self.lo, self.hi


class MovingAverageObserver(Observer):
    """Exponential moving average of each tensor's minimum and maximum: r += 0.01 * (new - r)."""

    def __init__(self) -> None:
        self.lo: float | None = None
        self.hi: float | None = None

    def update(self, x: Tensor) -> None:
        lo, hi = float(x.min()), float(x.max())
        self.lo = lo if self.lo is None else self.lo + _MOMENTUM * (lo - self.lo)
        self.hi = hi if self.hi is None else self.hi + _MOMENTUM * (hi - self.hi)

    @property
    def range(self) -> Range:
        assert self.lo is not None
        assert self.hi is not None
        return self.lo, self.hi


class PercentileObserver(Observer):
    """The k-th smallest and largest value of each tensor, widened over tensors.

    share: part of the values inside the range at each end, e.g. 0.999.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.lo, self.hi = float("inf"), float("-inf")

    def update(self, x: Tensor) -> None:
        flat = x.flatten()
        k = max(1, int(flat.numel() * (1 - self.share)))
        self.lo = min(self.lo, float(flat.kthvalue(k).values))
        self.hi = max(self.hi, float(flat.kthvalue(flat.numel() - k + 1).values))

    @property
    def range(self) -> Range:
        return self.lo, self.hi


class MSEObserver(Observer):
    """The clipped range with the least mean squared quantization error, from a histogram.

    bits: width of the codes whose error is minimized.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.minmax = MinMaxObserver()
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        before = self.minmax.range
        self.minmax.update(x)
        lo, hi = self.minmax.range
        if before[0] <= before[1] and before != (lo, hi):
            self.counts = _rebin(self.counts, before, (lo, hi))
        if hi > lo:
            values = x.detach().flatten().float().cpu()
            self.counts += torch.histc(values, _BINS, lo, hi).double()

    @property
    def range(self) -> Range:
        lo, hi = self.minmax.range
        if hi <= lo:
            return lo, hi
        centers = _centers(lo, hi)
        steps = 2**self.bits - 1
        best, least = (lo, hi), float("inf")
        for share in torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES).tolist():
            low, high = min(lo * share, 0.0), max(hi * share, 0.0)
            if lo < 0:
                low, high = -max(-low, high), max(-low, high)
            scale = (high - low) / steps
            rounded = ((centers.clamp(low, high) - low) / scale).round() * scale + low
            error = float(((rounded - centers) ** 2 * self.counts).sum())
            if error < least:
                best, least = (max(low, lo), min(high, hi)), error
        return best


def _centers(lo: float, hi: float) -> Tensor:
    width = (hi - lo) / _BINS
    return lo + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)


def _rebin(counts: Tensor, old: Range, new: Range) -> Tensor:
    """The same counts in the bins of a wider range."""
    width = (new[1] - new[0]) / _BINS
    bins = ((_centers(*old) - new[0]) / width).long().clamp(0, _BINS - 1)
    return torch.zeros_like(counts).index_add_(0, bins, counts)


def make_observer(quantize: Quantize, bits: int) -> Observer:
    """The observer that a policy names, of a value that gets codes of `bits` bits."""
    match quantize.observer:
        case "minmax":
            return MinMaxObserver()
        case "moving-average":
            return MovingAverageObserver()
        case "percentile":
            return PercentileObserver(quantize.percentile)
        case "mse":
            return MSEObserver(bits)


def bucket_name(name: str, bucket: int) -> str:
    """What the range of one bucket of the rows of the value `name` goes by."""
    return f"{name}[{bucket}]"


def bucket_factors(reach: Tensor) -> Tensor:
    """Factors [B] that let all buckets of rows reach as far as the one that reaches farthest.

    reach: greatest magnitude in each bucket, float32 [B]; 0 where nothing is known, and then the
        factor is that of the nearest bucket of which something is.
    """
    known = reach > 0
    if not bool(known.any()):
        return torch.ones_like(reach)
    number = torch.arange(len(reach), device=reach.device)
    distance = (number[:, None] - number).abs().float().masked_fill(~known, float("inf"))
    return reach.max() / reach[distance.argmin(1)]


def shared_range(ranges: dict[int, Range], buckets: int) -> tuple[Tensor, Range]:
    """Factors [buckets] for rows of each bucket, and the range that all share once scaled."""
    reach = torch.zeros(buckets)
    for bucket, (lo, hi) in ranges.items():
        reach[bucket] = max(-lo, hi, 0.0)
    factors = bucket_factors(reach)
    scaled = [(lo * float(factors[b]), hi * float(factors[b])) for b, (lo, hi) in ranges.items()]
    return factors, (min(lo for lo, _ in scaled), max(hi for _, hi in scaled))


def qparams_of(lo: float, hi: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of a static range.

    Ranges without negative values use all codes for [0, hi]; others are symmetric around zero.
    """
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if hi == lo:
        return 1.0, 0
    if lo == 0.0:
        return hi / (qmax - qmin), qmin
    return max(-lo, hi) / qmax, 0
