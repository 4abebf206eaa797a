"""Figures of a report: what rounding does by degree and by layer, and the plot of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch

import gnnfx
from gnnfx import Policy, Quantize, Report
from gnnfx.errors import InputError
from gnnfx.noise import sqnr
from gnnfx.policy import Observer
from gnnfx.trials import Trial, Trials
from tests.models import graph, make

INPUTS = graph(60, 240)


@cache
def report(bits: Literal[8, 4], observer: Observer = "percentile") -> Report:
    quantize = Quantize(bits, bits, observer=observer, percentile=0.9, layers="all")
    return gnnfx.optimize(make("sage"), Policy(quantize), INPUTS, calibration=[INPUTS]).report


def test_ranges_are_those_of_the_values_by_degree() -> None:
    figures = report(4).figures
    assert figures is not None
    site = figures.sites[0]
    assert (site.value, site.bits) == ("x", 4)
    x, edge_index = INPUTS
    degree = torch.bincount(edge_index[1], minlength=60)
    assert sum(r.nodes for r in site.ranges) == 60
    assert [r.least for r in site.ranges] == sorted(r.least for r in site.ranges)
    for found in site.ranges:
        rows = x[(degree >= found.least) & (degree <= found.most)]
        assert found.nodes == len(rows)
        assert found.before == pytest.approx((float(rows.min()), float(rows.max())))
        assert found.after[0] >= found.before[0]
        assert found.after[1] <= found.before[1]
    share = sum(r.saturated * r.nodes for r in site.ranges) / 60
    assert 0.05 < share < 0.2  # a tenth lies beyond each end of the percentiles, less half a step


def test_more_bits_make_less_noise_in_every_layer() -> None:
    coarse, fine = report(4, "minmax").figures, report(8, "minmax").figures
    assert coarse is not None
    assert fine is not None
    assert [x.module for x in coarse.layers] == [x.module for x in fine.layers]
    assert all(0 < a.sqnr < 60 for a in coarse.layers)
    assert all(a.sqnr + 10 < b.sqnr for a, b in zip(coarse.layers, fine.layers, strict=True))


def test_figures_are_kept_in_json_and_shown_as_a_table() -> None:
    found = report(4)
    assert Report.from_dict(found.to_dict()) == found
    assert found.figures is not None
    assert found.figures.table().row_count == sum(len(s.ranges) for s in found.figures.sites)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written(tmp_path: Path, suffix: str) -> None:
    trials = Trials(0.1, 0.9, (), (Trial("as asked", 2, 8.0, 0.7, True),))
    path = tmp_path / f"report.{suffix}"
    replace(report(4), trials=trials).plot(path)
    text = path.read_bytes()
    assert text.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert len(text) > 10_000


def test_what_cannot_be_plotted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Report("fp32", (), 0, 0)
    with pytest.raises(InputError, match="nothing to plot; expected one of gnnfx"):
        empty.plot(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"path must end with one of \.png"):
        report(4).plot(tmp_path / "a.txt")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        report(4).plot(tmp_path / "a.png")


def test_noise_that_drowns_the_result_is_warned_of() -> None:
    x, edge_index = INPUTS
    spiked = x.clone()
    spiked[0] *= 1e5  # one node's values take all codes but a few
    call = spiked, edge_index
    quantize = Quantize(8, 8, observer="minmax", layers="all")
    samples = [INPUTS, call]
    with pytest.warns(UserWarning, match="rounding leaves little of what convs") as caught:
        gnnfx.optimize(make("sage"), Policy(quantize), INPUTS, calibration=samples)
    assert {Path(w.filename).name for w in caught} == {Path(__file__).name}


def test_a_ratio_of_nothing_to_nothing_is_that_of_no_noise() -> None:
    nothing, something = torch.zeros(3), torch.ones(3)
    assert sqnr([nothing], [nothing]) == sqnr([something], [something]) == 300.0
    assert sqnr([nothing], [something]) < -300
    assert sqnr([something], [nothing]) == pytest.approx(0.0)
