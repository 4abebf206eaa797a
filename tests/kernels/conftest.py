"""How the tests of implementations compare results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

Compare = Callable[[Any, Any, str], None]


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """Kernels divide their work, however the tests themselves are spread over processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def assert_same() -> Compare:
    """Codes and indices are equal, floats agree to 1e-5 of the largest: sums are reordered."""

    def compare(got: Any, expected: Any, what: str) -> None:
        pairs = zip(_as_list(got), _as_list(expected), strict=True)
        for one, other in pairs:
            atol = 1e-5 * _largest(other) if other.is_floating_point() else 0.0
            rtol = 1e-5 if other.is_floating_point() else 0.0
            torch.testing.assert_close(
                one.cpu(),
                other.cpu(),
                rtol=rtol,
                atol=atol,
                equal_nan=True,
                msg=lambda m: f"{what}: {m}",
            )

    return compare


def _as_list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return max(float(finite.max()), 1.0) if finite.numel() else 1.0
