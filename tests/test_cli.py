"""The `gnnfx` command: what it prints and how it fails.  No timing is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gnnfx import demo
from gnnfx.cli import app
from gnnfx.errors import InputError

QUICK = ["demo", "--epochs", "3", "--budget", "0.05"]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "120")
    return CliRunner()


@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_demo_prints_one_table_and_the_report(runner: CliRunner, policy: str) -> None:
    result = runner.invoke(app, [*QUICK, "--policy", policy])
    assert result.exit_code == 0, result.output
    assert "GCN on digits: 1,797 nodes" in result.stdout
    assert f"policy {policy}" in result.stdout
    rows = [line.split("│")[1].strip() for line in result.stdout.splitlines() if "│" in line]
    assert [row for row in rows if row in {"eager", "optimized", "ratio"}] == [
        "eager",
        "optimized",
        "ratio",
    ]
    for column in ("accuracy", "warm graph", "new graph", "memory", "parameters"):
        assert column in result.stdout
    assert "convs.0" in result.stdout, "the report names the layers"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--dataset", "Corra", "dataset must be one of digits, Cora"),
        ("--model", "GNN", "model must be one of GCN, SAGE"),
        ("--policy", "int3", "policy must be one of"),
        ("--epochs", "0", "epochs must be 1 or more"),
    ],
)
def test_wrong_value_is_named(runner: CliRunner, option: str, value: str, expected: str) -> None:
    result = runner.invoke(app, [*QUICK, option, value])
    assert result.exit_code == 2
    assert expected in result.stderr
    assert value in result.stderr
    assert "Traceback" not in result.output


def test_version(runner: CliRunner) -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("gnnfx ")


def test_digits_graph_is_split_and_symmetric() -> None:
    data, classes = demo.load("Digits", seed=1)
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert masks.sum(dim=0).eq(1).all(), "each node is in exactly one part"
    assert data.train_mask.sum() == classes * demo.TRAIN_PER_CLASS
    pairs = set(zip(*data.edge_index.tolist(), strict=True))
    assert {(dst, src) for src, dst in pairs} == pairs
    assert len(pairs) == data.num_edges


def test_a_dataset_that_cannot_be_had_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(demo, "Planetoid", no_network)
    with pytest.raises(InputError, match=r"does not hold dataset 'Cora'.*no network"):
        demo.load("Cora", root=tmp_path)


@pytest.mark.parametrize("model", demo.MODELS)
def test_training_is_repeatable_and_ends_in_eval_mode(model: str) -> None:
    data, classes = demo.load("digits")
    first, second = (demo.train(model, data, classes, epochs=2) for _ in range(2))
    assert not first.training
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)
