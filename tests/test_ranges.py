"""Ranges in training: each observer against brute force, and what a checkpoint holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnnfx.kernels.degree import reference as degree_cdf
from gnnfx.ranges import TrackedRange, mse_range, percentile_range
from gnnfx.training_policy import Training, TrainingObserver


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, 20, generator=generator) * k for k in (1, 3, 2)]


def tracked(observer: TrainingObserver, sample: int | None = None) -> TrackedRange:
    found = TrackedRange(Training(observer=observer, percentile=0.99, sample=sample), 4)
    for x in batches():
        found.update(x)
    return found


def test_minmax_is_the_widest() -> None:
    everything, found = torch.stack(batches()), tracked("minmax")
    assert (float(found.lo), float(found.hi)) == (float(everything.min()), float(everything.max()))


def test_moving_average_starts_at_the_first_tensor() -> None:
    want = None
    for x in batches():
        want = float(x.max()) if want is None else want + 0.01 * (float(x.max()) - want)
    assert float(tracked("moving-average").hi) == pytest.approx(want)


def test_percentiles_are_widened_and_leave_the_tails_out() -> None:
    want = max(float(percentile_range(x.flatten(), 0.99)[1]) for x in batches())
    found = tracked("percentile")
    assert float(found.hi) == want
    assert float(found.hi) < float(torch.stack(batches()).max())


def test_percentiles_do_not_count_zeros() -> None:
    values = torch.cat([torch.zeros(10_000), torch.arange(1.0, 1001.0)])
    low, high = percentile_range(values, 0.99)
    assert (float(low), float(high)) == (10.0, 991.0)
    assert [float(t) for t in percentile_range(torch.zeros(5), 0.99)] == [0.0, 0.0]


def test_a_sample_is_close_to_all_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 100)
    whole, some = (
        TrackedRange(Training(observer="percentile", percentile=0.99, sample=s), 8)
        for s in (None, 4096)
    )
    whole.update(x)
    some.update(x)
    assert float(some.hi) == pytest.approx(float(whole.hi), rel=0.1)


def test_samples_are_of_rows_that_count_even_if_few_do() -> None:
    torch.manual_seed(0)
    x = torch.full((1000, 50), 1e6)
    x[::20] = torch.rand(50, 50) + 1
    ignored = torch.arange(1000) % 20 != 0
    found = TrackedRange(Training(observer="percentile", percentile=0.99, sample=256), 8)
    found.update(x, ignored, torch.full((1000,), 2.0))
    assert float(found.lo) == 0.0
    assert float(found.hi) == pytest.approx(4.0, rel=0.05)


def test_mse_clips_outliers() -> None:
    x = torch.cat(
        [torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0])]
    )
    low, high = (float(t) for t in mse_range(x, 4))
    assert low < 0 < high < 30


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse"])
@pytest.mark.parametrize("sample", [None, 64])
def test_ignored_rows_are_not_looked_at(observer: TrainingObserver, sample: int | None) -> None:
    x = batches()[0].clone()
    x[7] = 1e6
    found = TrackedRange(Training(observer=observer, sample=sample), 8)
    found.update(x, torch.arange(50) == 7)
    assert float(found.hi) < 10
    found.update(x, torch.ones(50, dtype=torch.bool))
    found.update(x[:0])
    assert int(found.seen) == 1


def test_a_checkpoint_holds_the_range() -> None:
    one, other = tracked("moving-average"), TrackedRange(Training(), 4)
    other.load_state_dict(one.state_dict())
    assert (float(other.lo), int(other.seen)) == (float(one.lo), 3)


def test_degrees_rank_within_their_graph() -> None:
    edge_index = torch.tensor([[0, 1, 2, 0, 4], [1, 2, 1, 1, 3]])
    # In-degrees 0, 3, 1, 1, 0: two nodes have none, four at most one.
    torch.testing.assert_close(degree_cdf(edge_index, 5), torch.tensor([0.4, 1.0, 0.8, 0.8, 0.4]))
    batch = torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(
        degree_cdf(edge_index, 5, batch), torch.tensor([1 / 3, 1.0, 2 / 3, 1.0, 0.5])
    )
