"""`gnnfx optimize` and `gnnfx inspect`, and the models they take from files."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import gnnfx
from gnnfx.cli import app
from gnnfx.errors import InputError
from gnnfx.model_file import load_model
from tests.bits import same_bits
from tests.models import graph

SOURCE = """
from dataclasses import dataclass
from beside import WIDTH
import torch
from torch_geometric.nn import GCN

@dataclass
class Inputs:
    x: torch.Tensor
    edge_index: torch.Tensor

def made():
    import beside_too
    torch.manual_seed(0)
    model = GCN(WIDTH, 16, 2, 5).eval()
    return model, Inputs(torch.randn(40, WIDTH), torch.randint(40, (2, 160)))

def alone():
    return made()[0]

def with_inputs():
    model, inputs = made()
    return model, (inputs.x, inputs.edge_index)

def with_names():
    model, inputs = made()
    return model, [inputs.x], {"edge_index": inputs.edge_index}

def nothing(): pass
def three(): return alone(), (), 3
def raises(): raise OSError("no data")
NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with functions that make models, and what it imports beside it."""
    (tmp_path / "beside.py").write_text("WIDTH = 20\n")
    (tmp_path / "beside_too.py").write_text("")
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("function", ["alone", "with_inputs", "with_names"])
@pytest.mark.parametrize("policy", ["fp32", "int8"])
def test_a_model_is_optimized_saved_and_inspected(file: Path, function: str, policy: str) -> None:
    output = file.with_name("model.gnnfx")
    runner = CliRunner()
    where = f"{file}:{function}"
    result = runner.invoke(app, ["optimize", where, "--policy", policy, "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert f"policy {policy}" in result.stdout
    made = load_model(where)
    optimized = gnnfx.optimize(made.model, policy, made.args, example_kwargs=made.kwargs)
    inputs = graph(30, 90)
    assert same_bits(gnnfx.load(output)(*inputs), optimized(*inputs))

    result = runner.invoke(app, ["inspect", str(output)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for part in (f"policy {policy}", "convs.0.bias", "f32[16]", "saved by gnnfx 0.", "bytes"):
        assert part in result.stdout
    assert "program GCN" not in result.stdout
    result = runner.invoke(app, ["inspect", str(output), "--ir"])
    assert result.stdout.endswith(optimized.ir())


def test_the_functions_give_what_they_say(file: Path) -> None:
    assert load_model(f"{file}:alone").args is None
    assert load_model(f"{file}:with_inputs").kwargs is None
    made = load_model(f"{file}:with_names")
    assert made.args is not None
    assert made.kwargs is not None
    assert list(made.kwargs) == ["edge_index"]


WRONG = {
    "no-colon": ("{file}", "model must be FILE.py:FUNCTION, got"),
    "no-name": ("{file}:", "model must be FILE.py:FUNCTION, got"),
    "no-file": ("{file}x:alone", "there is no file"),
    "folder": ("{folder}:alone", "there is no file"),
    "no-python": ("{folder}/text.txt:alone", "its name must end in .py"),
    "syntax": ("{folder}/broken.py:alone", "broken.py failed: SyntaxError"),
    "no-function": ("{file}:make", "has no function 'make'; it has ['GCN', 'Inputs', 'alone'"),
    "number": ("{file}:NUMBER", "has no function 'NUMBER'"),
    "nothing": ("{file}:nothing", "must return a torch.nn.Module"),
    "three": ("{file}:three", "got (GCN, tuple, int)"),
    "raises": ("{file}:raises", "raises failed: OSError: no data"),
}


@pytest.mark.parametrize(("where", "message"), WRONG.values(), ids=WRONG)
def test_wrong_models(file: Path, where: str, message: str) -> None:
    (file.parent / "text.txt").write_text("")
    (file.parent / "broken.py").write_text("def alone(:\n")
    where = where.format(file=file, folder=file.parent)
    with pytest.raises(InputError) as error:
        load_model(where)
    assert message in str(error.value)
    result = CliRunner().invoke(app, ["optimize", where, "--output", str(file.parent / "out")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (file.parent / "out").exists()


def test_errors_of_the_commands(file: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["inspect", str(file)])
    assert result.exit_code == 1
    assert "model.py does not start like an artifact" in result.stderr
    arguments = ["optimize", f"{file}:alone", "--output", str(file.parent)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert "is not a regular file; it is not overwritten" in result.stderr
    result = runner.invoke(app, [*arguments[:2], "--output", "out", "--policy", "int3"])
    assert result.exit_code == 2
    assert "policy must be one of" in result.stderr


def test_a_file_called_like_a_module_replaces_nothing(tmp_path: Path) -> None:
    import typing

    (tmp_path / "typing.py").write_text("def model():\n    return 3\n")
    with pytest.raises(InputError, match="got int"):
        load_model(f"{tmp_path / 'typing.py'}:model")
    assert hasattr(typing, "Any")
