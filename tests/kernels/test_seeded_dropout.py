"""Draws of `seeded_dropout`: as many as p says, and independent of place and seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gnnfx.kernels  # noqa: F401  (registers the op)

COUNT = 200_000


def _kept(seed: int, p: float = 0.5) -> Tensor:
    ones = torch.ones(COUNT)
    y: Tensor = torch.ops.gnnfx.seeded_dropout(ones, p, torch.tensor(seed))
    assert set(y.unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - p)))}
    return (y != 0).float()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_values_are_dropped_with_probability_p(p: float) -> None:
    shares = torch.stack([_kept(seed, p).mean() for seed in range(20)])
    deviation = (p * (1 - p) / COUNT) ** 0.5
    assert float((shares - (1 - p)).abs().max()) < 4.5 * deviation
    assert 0.5 * deviation < float(shares.std()) < 1.6 * deviation, "as far apart as by chance"


@pytest.mark.parametrize("distance", [1, 2, 16, 64, 4096])
def test_places_are_independent(distance: int) -> None:
    kept = _kept(7) - 0.5
    correlation = 4 * (kept[distance:] * kept[:-distance]).mean()
    assert abs(float(correlation)) < 4.5 / COUNT**0.5


@pytest.mark.parametrize("other", [1, 2**16, 2**31, 2**32, 2**62, -1])
def test_seeds_are_independent(other: int) -> None:
    one, another = _kept(0) - 0.5, _kept(other) - 0.5
    assert abs(float(4 * (one * another).mean())) < 4.5 / COUNT**0.5
    # One seed's draws are not another's, moved by some places.
    spectrum = torch.fft.rfft(one) * torch.fft.rfft(another).conj()
    assert float(torch.fft.irfft(spectrum).abs().max()) < 0.25 * 6 * COUNT**0.5
