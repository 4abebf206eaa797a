"""`gnnfx dump`: the program that gnnfx makes of a model in a Python file, as text and as HTML.

    gnnfx dump model.py:make_model --policy int8 --after fuse-aggregate --html model.html

The function returns a model, (model, example_inputs) or (model, args, kwargs).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from gnnfx import html
from gnnfx.errors import InputError
from gnnfx.history import record
from gnnfx.ir.text import dump

Example = tuple[nn.Module, tuple[Any, ...] | None, dict[str, Any] | None]


def run(
    source: str,
    *,
    policy: str = "fp32",
    after: str | None = None,
    html_to: Path | None = None,
    folder: Path | None = None,
) -> str:
    """The text of the program, after the pass `after` or after all.

    source: 'file.py:function'.
    after: label of a pass, e.g. 'fuse-epilogue', or 'fuse-epilogue#2' for its second run.
    html_to, folder: where to write the page, and one text for each pass; nowhere if None.

    Raises InputError for a source, a pass or a file that is not there.
    """
    model, args, kwargs = load(source)
    history = record(model, policy, args, example_kwargs=kwargs, stop_after=after)
    try:
        if folder is not None:
            history.write(folder)
        if html_to is not None:
            html_to.write_text(html.page(history.steps), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}") from error
    return dump(history.program)


def load(source: str) -> Example:
    """The model, and the example inputs if there are any, that 'file.py:function' makes."""
    file, colon, name = source.rpartition(":")
    if not colon or not file or not name:
        raise InputError(f"source must be file.py:function, got {source!r}")
    made = _function(Path(file), name)()
    match made:
        case nn.Module():
            return made, None, None
        case (nn.Module() as model, tuple() | list() as args):
            return model, tuple(args), None
        case (nn.Module() as model, tuple() | list() as args, dict() as kwargs):
            return model, tuple(args), kwargs
    raise InputError(
        f"{name} in {file} must return a torch.nn.Module, (model, example_inputs) or "
        f"(model, args, kwargs), got {_described(made)}"
    )


def _function(file: Path, name: str) -> Callable[[], Any]:
    if not file.is_file():
        raise InputError(f"source names the file {str(file)!r}, which does not exist")
    # A name of its own: model.py must not replace a module `model` that is imported already.
    key = f"gnnfx_dump_{file.stem}"
    spec = importlib.util.spec_from_file_location(key, file)
    if spec is None or spec.loader is None:
        raise InputError(f"source must name a Python file, got {str(file)!r}")
    module = importlib.util.module_from_spec(spec)
    # Layers of PyG look up the module that they were defined in by name.
    sys.modules[key] = module
    # The file may import its neighbours, as it can when Python runs it.
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"source {str(file)!r} could not be imported: {what}") from error
    finally:
        sys.path.pop(0)
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        found = ", ".join(names) or "none"
        raise InputError(f"{str(file)!r} has no function {name!r}; its functions are {found}")
    return function  # type: ignore[no-any-return]


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__
