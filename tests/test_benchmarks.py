"""The benchmark suite on one small workload: what it writes, what it skips, what it reports."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg

import gnnfx
from gnnfx import qat

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
MODULES = (
    "compare",
    "conversion",
    "graphs",
    "limits",
    "memory",
    "report",
    "rounds",
    "run",
    "workloads",
)
OPTIONS = ["--workloads", "molecules-gcn", "--parts", "workloads", "--budget", "0.02"]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The scripts of `benchmarks/`, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def main(script: Any, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", [script.__name__, *arguments])
        script.main()

    return main


def test_a_workload_is_measured_once_and_reported(
    suite: SimpleNamespace,
    call: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers = ["torch.sparse", "csr-cached", "tinygnn", "gnnfx-fp32", "gnnfx-int8"]
    call(suite.run, *OPTIONS, "--peers", *peers, "--out", str(tmp_path))
    path = tmp_path / "molecules-gcn.json"
    result = json.loads(path.read_text())
    rows = {row["peer"]: row for row in result["peers"]}
    assert list(rows) == ["eager", *peers]
    for name in ("eager", "torch.sparse", "csr-cached", "gnnfx-fp32"):
        assert rows[name]["status"] == "ok", rows[name]
        assert rows[name]["relative_difference"] < 1e-5
        assert rows[name]["warm"]["seconds"]["median"] > 0
        assert rows[name]["new"]["to_best"]["median"] > 0
    assert rows["tinygnn"]["status"] in ("ok", "not available")
    assert rows["gnnfx-int8"]["status"] == "approximate"
    assert not result["best"]["warm"].startswith("gnnfx")
    ops = {op["op"] for op in result["programs"]["fp32"]}
    assert {"aggregate", "compress"} <= ops
    assert all(op["least"] > 0 for ops in result["programs"].values() for op in ops)

    written = path.stat().st_mtime_ns
    call(suite.run, *OPTIONS, "--out", str(tmp_path))
    assert path.stat().st_mtime_ns == written, "what is there is skipped"
    capsys.readouterr()
    call(suite.report, "--results", str(tmp_path))
    text = capsys.readouterr().out
    assert "| molecules-gcn |" in text
    assert "| molecules-gcn fp32 | aggregate |" in text
    assert (tmp_path / "ratios.png").exists()
    assert "gnnfx-int8" in (tmp_path / "tables.md").read_text()

    elsewhere = {**result, "name": "cora-gcn"}
    elsewhere["environment"] = {**result["environment"], "cpu": "another one"}
    (tmp_path / "cora-gcn.json").write_text(json.dumps(elsewhere))
    call(suite.report, "--results", str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("- cora: ") and "another one" in line for line in lines)
    assert any(line.startswith("- molecules: ") for line in lines)


def test_a_missing_data_set_is_named(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(suite.graphs, "LINKXDataset", offline)
    with pytest.raises(suite.graphs.Missing, match="cornell5 is neither in"):
        suite.workloads.make("cornell5-gcn", tmp_path)


def test_what_does_not_fit_is_not_run(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite.memory, "available_bytes", lambda device: 2**20)
    monkeypatch.setattr(suite.compare, "available_bytes", lambda device: 2**20)
    work = suite.workloads.make("power-law-5k-edgeconv", Path())
    found = suite.compare.compare(work, ["eager"], 0.02, "cpu", lambda text: None)
    (row,) = found["peers"]
    assert row["status"] == "out of memory"
    assert row["estimated_bytes"] > 100_000 * 64 * 4
    assert row["warm"] is None
    assert found["best"]["warm"] is None


def test_slow_calls_run_in_fewer_rounds_and_ratios_take_the_nearest(
    suite: SimpleNamespace,
) -> None:
    timed = suite.rounds.Timed
    calls = {"fast": timed(lambda: None, 0.01), "slow": timed(lambda: None, 0.1)}
    found = suite.rounds.interleave(calls, 1.0)
    assert len(found["fast"]) == 50
    assert len(found["slow"]) == 5
    spread = suite.rounds.ratios({0: 1.0, 1: 2.0, 9: 6.0}, {1: 1.0, 8: 2.0})
    assert (spread.q1, spread.median, spread.q3) == (2.25, 2.5, 2.75)


def test_sampled_batches_are_subgraphs(suite: SimpleNamespace) -> None:
    whole = suite.graphs.power_law(400, 3000, 4)
    edges = set(map(tuple, whole.edge_index.t().tolist()))
    rows = {tuple(row): number for number, row in enumerate(whole.x.tolist())}
    for batch in suite.graphs.sampled(whole):
        names = torch.tensor([rows[tuple(row)] for row in batch.x.tolist()])
        assert len(names.unique()) == len(names)
        assert set(map(tuple, names[batch.edge_index].t().tolist())) <= edges
        assert int(batch.edge_index[1].bincount().max()) <= 10


def test_sparse_products_are_limited_by_what_they_move(suite: SimpleNamespace) -> None:
    achieved = importlib.import_module("achieved")
    x, edge_index = torch.zeros(300, 200), torch.randint(300, (2, 900))
    x[:, 7] = 1.0
    model = pyg.GCN(200, 16, 2, 4).eval()
    module = gnnfx.optimize(model, "fp32", (x, edge_index))
    limits = suite.limits.Limits.of(edge_index, 300)
    found = {time.op: time for time in achieved.op_times(module, (x, edge_index), limits)}
    assert found["sparse_linear"].bound in ("copy", "gather")


def test_products_of_edge_features_are_limited_by_their_rate(suite: SimpleNamespace) -> None:
    achieved = importlib.import_module("achieved")
    x, edge_index = torch.randn(40, 64), torch.randint(40, (2, 4000))
    edge_attr = torch.randn(4000, 64)
    model = pyg.GINEConv(torch.nn.Linear(64, 64), edge_dim=64).eval()
    module = gnnfx.optimize(model, "fp32", (x, edge_index, edge_attr))
    limits = suite.limits.Limits.of(edge_index, 40)
    times = achieved.op_times(module, (x, edge_index, edge_attr), limits)
    found = {time.op: time for time in times}["aggregate_messages"]
    assert found.bound == "gemm"
    assert found.least == 2 * 4000 * 64 * 64 / limits.fused_gemm(64, 64)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_a_converted_module_are_compared_site_by_site(
    suite: SimpleNamespace, bits: int
) -> None:
    torch.manual_seed(0)
    call = torch.randn(60, 20), torch.randint(60, (2, 300))
    labels = torch.arange(60) % 5
    workload = suite.conversion.Workload(
        "GIN", lambda: qat.build("GIN", 20, 5), (call, labels, slice(None)), call
    )
    row = suite.conversion._measure(workload, bits, epochs=3, budget=0.01)
    widths = 20 + 20 + 64 + 64 + 64 + 64
    assert (row.sites, row.of_sites, row.codes) == (6, 6, 60 * widths)
    assert row.ties <= 3
    assert row.most <= 1
    assert row.different <= 20  # a code that differs at a tie reaches some of its neighbours'
    simulation = suite.conversion._trained(workload, "DQ", bits, 3)
    other = gnnfx.convert(suite.conversion._trained(workload, "DQ", bits, 9))
    wanted = suite.conversion._simulated_codes(simulation, call)
    found = {
        mended: suite.conversion._differences(other, call, wanted, mended)
        for mended in (True, False)
    }
    assert any(bool(difference.any()) for difference in found[True].values())
    assert found[True].keys() == found[False].keys() == wanted.keys()
    assert any(not found[True][site].equal(found[False][site]) for site in wanted)


def test_reading_rows_reads_every_byte(suite: SimpleNamespace) -> None:
    read_rows = importlib.import_module("gather_numba").read_rows
    for width in (40, 64, 100, 512):
        table = torch.zeros((50, width), dtype=torch.int8)
        index = torch.arange(50, dtype=torch.int32)
        table[7, width - 1] = 3
        assert int(read_rows(table, index).sum()) == 3
    limits = suite.limits.Limits(index, 50)
    assert limits.gather(64) > 0
    assert limits.gemm(64, 32, 16, torch.int8) > 0
    assert set(limits.to_dict()) == {"copy", "gather 64", "gemm 64 32 16 int8"}


def test_layers_give_eagers_answers(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = importlib.import_module("layers")
    monkeypatch.setattr(layers, "PEERS", ("eager", "gnnfx-fp32", "gnnfx-int8"))
    names = ("FastRGCNConv", "HGTConv", "NNConv", "PNAConv, 4 towers")
    results = [layers.measure(name, 150, 1500, 0.01) for name in names]
    for result in results:
        rows = result["rows"]
        assert rows["eager"]["error"] == 0
        assert rows["gnnfx-fp32"]["error"] < 1e-4, result["layer"]
        assert rows["gnnfx-int8"]["error"] < 0.1, result["layer"]
    assert layers.table(results).row_count == len(names)
