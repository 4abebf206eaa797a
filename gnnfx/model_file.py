"""Models from Python files: `model.py:make_model` names a function in a file.

The function takes no arguments and returns a model, (model, example_inputs) or
(model, args, kwargs).
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from gnnfx.errors import InputError

_MODULE = "gnnfx_model_file"


@dataclass(frozen=True)
class ModelFile:
    """A model, and the arguments of one call if the function gave them."""

    model: nn.Module
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any] | None


def load_model(where: str) -> ModelFile:
    """Run the file, then the function, that `where` names as FILE.py:FUNCTION.

    Raises InputError if there is no such file or function, if either fails, or if the function
    returns something else than a model and its arguments.
    """
    file, colon, name = where.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"model must be FILE.py:FUNCTION, got {where!r}")
    folder = str(Path(file).resolve().parent)
    # As for a script, files beside it can be imported, by the function too.
    sys.path.insert(0, folder)
    try:
        return _model_file(where, _call(file, name))
    finally:
        sys.path.remove(folder)


def _call(file: str, name: str) -> Any:
    """What the function of that name in `file` returns."""
    functions = vars(_module(file))
    if not callable(functions.get(name)):
        found = sorted(n for n, v in functions.items() if callable(v) and not n.startswith("_"))
        raise InputError(f"model: {file} has no function {name!r}; it has {found}")
    try:
        return functions[name]()
    except Exception as error:
        raise InputError(f"{file}:{name} failed: {type(error).__name__}: {error}") from error


def _module(file: str) -> ModuleType:
    if not Path(file).is_file():
        raise InputError(f"model: there is no file {file!r}")
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    if spec is None or spec.loader is None:
        raise InputError(f"model: {file!r} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look their module up by its name.
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{file} failed: {type(error).__name__}: {error}") from error
    return module


def _model_file(where: str, made: Any) -> ModelFile:
    match made:
        case nn.Module():
            return ModelFile(made, None, None)
        case (nn.Module() as model, tuple() | list() as args):
            return ModelFile(model, tuple(args), None)
        case (nn.Module() as model, tuple() | list() as args, dict() as kwargs):
            return ModelFile(model, tuple(args), kwargs)
    got = type(made).__name__
    if isinstance(made, tuple):
        got = f"({', '.join(type(item).__name__ for item in made)})"
    raise InputError(
        f"{where} must return a torch.nn.Module, (model, example_inputs) or "
        f"(model, args, kwargs), with a tuple of inputs and a dict; got {got}"
    )
