"""gnnfx qat: every method runs, outcomes are kept between runs, wrong input is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gnnfx import qat
from gnnfx.cli import USAGE_ERROR, app
from gnnfx.errors import InputError


def outcome(method: Any, bits: int, seed: int, accuracy: float) -> qat.Outcome:
    return qat.Outcome("Cora", "GCN", method, bits, seed, 200, 7, 0.8, accuracy)


def test_every_method_runs_and_nothing_is_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results" / "qat.jsonl"
    found = qat.run("digits", "SAGE", bits=(4,), epochs=2, quick=True, out=out)
    assert [(o.method, o.bits) for o in found] == [
        ("FP32", 32),
        ("PTQ", 4),
        ("QAT", 4),
        ("DQ", 4),
    ]
    assert all(0 < o.test <= 1 and 1 <= o.best_epoch <= 2 for o in found)
    monkeypatch.setattr(qat, "finetune", None)
    assert qat.run("digits", "SAGE", bits=(4,), epochs=2, quick=True, out=out) == found
    assert qat.read(out) == found


def test_the_table_compares_with_the_same_seeds() -> None:
    outcomes = [outcome("FP32", 32, s, 0.80 + s / 100) for s in range(2)]
    outcomes += [outcome("DQ", 4, s, 0.79 + s / 100) for s in range(2)]
    cells = [list(column.cells) for column in qat.table(outcomes).columns]
    assert cells[-2] == ["80.50 (0.71)", "79.50 (0.71)"]
    assert cells[-1] == ["", "-1.00"]
    cells = [list(column.cells) for column in qat.table(outcomes, errors={"Cora"}).columns]
    assert cells[-2] == ["0.805 (0.007)", "0.795 (0.007)"]
    more = [*outcomes, outcome("FP32", 32, 2, 0.1)]
    cells = [list(column.cells) for column in qat.table(more).columns]
    assert cells[-1] == ["", "-1.00"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "MLP"}, "model must be one of"),
        ({"methods": ("DQ", "XQ")}, r"methods must be of .* got \['XQ'\]"),
        ({"bits": (8, 3)}, r"bits must be 8, 4 or 2; got \[3\]"),
        ({"seeds": 0}, "seeds must be 1 or more"),
    ],
)
def test_wrong_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        qat.run("digits", **changes)


def test_the_command_prints_a_table_and_reports_errors(tmp_path: Path) -> None:
    runner = CliRunner()
    common = ["qat", "--dataset", "digits", "--quick", "--epochs", "1"]
    result = runner.invoke(app, [*common, "--method", "FP32"])
    assert result.exit_code == 0
    assert "FP32" in result.output
    result = runner.invoke(app, [*common, "--bits", "3"])
    assert result.exit_code == USAGE_ERROR
    assert "bits must be 8, 4 or 2" in result.output
