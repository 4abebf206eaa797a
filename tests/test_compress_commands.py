"""gnnfx prune and gnnfx compress: tables, files, checkpoints, and errors that name the option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gnnfx
from gnnfx import compress_commands
from gnnfx.cli import app
from gnnfx.shown_errors import USAGE_ERROR

COMMON = ["--dataset", "digits", "--model", "gcn", "--quick", "--epochs", "2"]


def test_compress_writes_what_it_shows_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, report = tmp_path / "small.gnnfx", tmp_path / "report.json"
    options = [*COMMON, "--ratio", "0.5", "--bits", "8", "--checkpoint-dir", str(tmp_path / "run")]
    files = ["--output", str(module), "--report", str(report)]
    result = CliRunner().invoke(app, ["compress", *options, *files])
    assert result.exit_code == 0, result.output
    names = [stage["name"] for stage in json.loads(report.read_text())]
    assert names == ["dense", "prune", "fine-tune", "train-rounded", "convert"]
    assert all(name in result.output for name in names)
    tensors = gnnfx.load(module).tensors()
    assert any(t.dtype == torch.int8 for t in tensors.values())
    before = report.read_text()
    monkeypatch.setattr(compress_commands, "finetune", None)
    result = CliRunner().invoke(app, ["compress", *options, *files])
    assert result.exit_code == 0, result.output
    assert report.read_text() == before


def test_prune_stays_in_float() -> None:
    options = ["--method", "fine-grained", "--ratio", "0.9", "--schedule", "cubic", "--steps", "1"]
    result = CliRunner().invoke(app, ["prune", *COMMON, *options])
    assert result.exit_code == 0, result.output
    assert "fine-tune" in result.output
    assert "train-rounded" not in result.output


def test_prune_layers() -> None:
    options = ["prune", *COMMON, "--model", "sage", "--units", "layers"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["prune", *COMMON, "--units", "rows"], "units must be one of"),
        (["prune", *COMMON, "--model", "mlp"], "model must be one of GCN, SAGE"),
        (["prune", *COMMON, "--method", "dense"], "method must be one of"),
        (["compress", *COMMON, "--bits", "3"], "weight_bits must be one of"),
        (["compress", *COMMON, "--ratio", "1.5"], "ratio must lie in"),
        (["compress", *COMMON, "--dataset", "Karate"], "dataset must be one of"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == USAGE_ERROR
    assert message in result.output
