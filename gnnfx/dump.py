"""`gnnfx dump`: the program that gnnfx makes of a model in a Python file, as text and as HTML.

    gnnfx dump model.py:make_model --policy int8 --after fuse-aggregate --html model.html

The function is one that `gnnfx.model_file` takes.
"""

from __future__ import annotations

from pathlib import Path

from gnnfx import html
from gnnfx.errors import InputError
from gnnfx.history import record
from gnnfx.ir.text import dump
from gnnfx.model_file import load_model


def run(
    source: str,
    *,
    policy: str = "fp32",
    after: str | None = None,
    html_to: Path | None = None,
    folder: Path | None = None,
) -> str:
    """The text of the program, after the pass `after` or after all.

    source: FILE.py:FUNCTION.
    after: label of a pass, e.g. 'fuse-epilogue', or 'fuse-epilogue#2' for its second run.
    html_to, folder: where to write the page, and one text for each pass; nowhere if None.

    Raises InputError for a source, a pass or a file that is not there.
    """
    made = load_model(source)
    history = record(made.model, policy, made.args, example_kwargs=made.kwargs, stop_after=after)
    try:
        if folder is not None:
            history.write(folder)
        if html_to is not None:
            html_to.write_text(html.page(history.steps), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}") from error
    return dump(history.program)
