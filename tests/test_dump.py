"""`gnnfx dump`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gnnfx.cli import app
from gnnfx.ir.text import parse

SOURCE = """\
from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.nn import GCN, MessagePassing

from sizes import WIDTH


class Sum(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor, scale: float = 1.0) -> Tensor:
        return self.propagate(edge_index, x=x) * scale

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


def model():
    return GCN(WIDTH, 8, 2, 3)


def inputs():
    return torch.randn(5, WIDTH), torch.tensor([[0, 1, 1], [1, 2, 4]])


def with_inputs():
    return Sum(), inputs()


def with_kwargs():
    x, edge_index = inputs()
    return model(), [x], {"edge_index": edge_index}


def number():
    return 3


def wrong_pair():
    return model(), 3


constant = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sizes.py").write_text("WIDTH = 6\n")
    (tmp_path / "user_model.py").write_text(SOURCE)
    return tmp_path / "user_model.py"


@pytest.mark.parametrize("function", ["model", "with_inputs", "with_kwargs"])
def test_prints_the_program(file: Path, function: str) -> None:
    result = CliRunner().invoke(app, ["dump", f"{file}:{function}"])
    assert result.exit_code == 0, result.output
    program = parse(result.stdout)
    assert any(program.find("aggregate"))


def test_stops_after_a_pass_and_writes_every_step(file: Path, tmp_path: Path) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "steps"
    arguments = ["dump", f"{file}:model", "--policy", "int8", "--after", "canonicalize#2"]
    result = CliRunner().invoke(app, [*arguments, "--html", str(page), "--to", str(folder)])
    assert result.exit_code == 0, result.output
    texts = sorted(folder.iterdir())
    assert [t.name for t in texts] == [
        "00-trace.txt",
        "01-canonicalize.txt",
        "02-raise-message-passing.txt",
        "03-eliminate-common-subexpressions.txt",
        "04-canonicalize-2.txt",
    ]
    assert texts[-1].read_text() == result.stdout
    assert '"label":"canonicalize#2"' in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py:model"], "there is no file 'nowhere.py'"),
        (["user_model.py"], "must be FILE.py:FUNCTION, got"),
        (["user_model.py:"], "must be FILE.py:FUNCTION, got"),
        (["user_model.py:modell"], "no function 'modell'; it has"),
        (["user_model.py:constant"], "no function 'constant'"),
        (["user_model.py:number"], "must return a torch.nn.Module, .* got int"),
        (["user_model.py:wrong_pair"], r"got \(GCN, int\)"),
        (["user_model.py:model", "--after", "fuse"], "no pass 'fuse' ran; expected one of trace"),
        (["user_model.py:model", "--policy", "int3"], "policy must be one of"),
        (["sizes.txt:model"], r"its name must end in \.py"),
        (["broken.py:model"], r"broken\.py failed: ZeroDivisionError"),
        (["user_model.py:model", "--html", "no/such/folder/x.html"], "cannot write no/such"),
    ],
)
def test_says_what_is_wrong(
    file: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    Path("sizes.txt").write_text("")
    Path("broken.py").write_text("1 / 0\n")
    result = CliRunner().invoke(app, ["dump", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert re.search(message, result.stderr), result.stderr
