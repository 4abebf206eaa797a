"""Measuring: shares of rounds, spreads, graphs that are new, and bytes.  No timing is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gnnfx import measure
from gnnfx.measure import Spread, interleaved_seconds, new_graphs, parameter_bytes, peak_bytes

MIB = 2**20


def test_spread_holds_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(median=3.0, q1=2.0, q3=4.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_rounds_are_interleaved_and_first_place_rotates() -> None:
    order: list[str] = []
    found = interleaved_seconds(
        {name: lambda name=name: order.append(name) for name in "ab"},  # type: ignore[misc]
        prepare={"a": lambda: order.append("prepare")},
        budget=0.0,
        min_rounds=3,
        warmup=1,
    )
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert "".join(order).replace("prepare", "p") == "pab" + "pab" + "bpa" + "pab"


def test_ratios_are_taken_round_by_round() -> None:
    assert measure.ratios([4.0, 6.0, 2.0], [1.0, 3.0, 2.0]) == Spread(2.0, 1.5, 3.0)


def test_new_graphs_hold_the_same_edges_in_new_tensors() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    renew = new_graphs(edges)
    graphs = [renew() for _ in range(3)]
    for graph in graphs:
        assert sorted(graph.t().tolist()) == sorted(edges.t().tolist())
        assert graph.data_ptr() != edges.data_ptr()
    assert not torch.equal(graphs[0], graphs[1])
    assert new_graphs(edges[:, :0])().shape == (2, 0)


@pytest.mark.parametrize(
    "allocate",
    [
        pytest.param(lambda: torch.ones(16 * MIB), id="torch"),
        pytest.param(lambda: np.ones(16 * MIB, dtype=np.float32), id="numpy"),
    ],
)
def test_peak_bytes_sees_every_allocator(allocate: object) -> None:
    assert callable(allocate)
    assert peak_bytes(allocate) == pytest.approx(64 * MIB, abs=4 * MIB)


def test_peak_bytes_counts_what_lives_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(8 * MIB)
        del first
        return torch.ones(8 * MIB) + torch.ones(8 * MIB)

    assert peak_bytes(call) == pytest.approx(96 * MIB, abs=4 * MIB)


def test_peak_bytes_without_a_resettable_maximum(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    assert peak_bytes(lambda: torch.ones(16 * MIB)) == pytest.approx(64 * MIB, abs=8 * MIB)


def test_parameter_bytes_counts_shared_memory_once() -> None:
    module, codes = nn.Linear(4, 8), torch.zeros(3, dtype=torch.int8)
    module.again = module.weight
    module.register_buffer("codes", codes)
    module.register_buffer("view", codes.view(3, 1))
    assert parameter_bytes(module) == 4 * (32 + 8) + 3
