"""Observers: ranges against brute force."""

from __future__ import annotations

import pytest
import torch

from gnnfx.observers import (
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
    make_observer,
    qparams_of,
)
from gnnfx.policy import Quantize


def _batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, 20, generator=generator) * k for k in (1, 3, 2)]


def test_minmax() -> None:
    observer = MinMaxObserver()
    for x in _batches():
        observer.update(x)
    everything = torch.stack(_batches())
    assert observer.range == (float(everything.min()), float(everything.max()))


def test_moving_average() -> None:
    observer = MovingAverageObserver()
    want = None
    for x in _batches():
        observer.update(x)
        high = float(x.max())
        want = high if want is None else want + 0.01 * (high - want)
    assert observer.range[1] == pytest.approx(want)


def test_percentile_leaves_the_tails_out() -> None:
    observer = PercentileObserver(0.99)
    values = torch.arange(1000.0)
    observer.update(values[torch.randperm(1000)])
    assert observer.range == (9.0, 990.0)


def test_mse_clips_outliers_where_that_lowers_the_error() -> None:
    x = torch.cat([torch.randn(100_000), torch.tensor([60.0])])
    observer = MSEObserver(bits=4)
    observer.update(x)
    low, high = observer.range

    def error(bound: float) -> float:
        scale = bound / 7
        codes = (x / scale).round().clamp(-7, 7)
        return float((codes * scale - x).pow(2).mean())

    assert high < 60
    assert error(max(-low, high)) < error(60.0)


def test_mse_ranges_grow_with_the_data() -> None:
    observer = MSEObserver(bits=8)
    observer.update(torch.linspace(0, 1, 1000))
    observer.update(torch.linspace(0, 4, 1000))
    assert observer.range[0] == 0.0
    assert observer.range[1] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    ("lo", "hi", "want"),
    [
        (-2.0, 1.0, (2.0 / 127, 0)),
        (0.0, 5.1, (5.1 / 255, -128)),
        (3.0, 5.1, (5.1 / 255, -128)),
        (-4.0, -1.0, (4.0 / 127, 0)),
        (0.0, 0.0, (1.0, 0)),
    ],
)
def test_static_scales_cover_zero(lo: float, hi: float, want: tuple[float, int]) -> None:
    assert qparams_of(lo, hi, 8) == pytest.approx(want)


@pytest.mark.parametrize("name", ["minmax", "moving-average", "percentile", "mse"])
def test_every_policy_name_has_an_observer(name: str) -> None:
    observer = make_observer(Quantize(observer=name), 8)  # type: ignore[arg-type]
    observer.update(torch.randn(100))
    low, high = observer.range
    assert low < 0 < high
