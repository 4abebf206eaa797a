"""How commands show errors: one line, and a code that says whose fault it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from gnnfx.errors import GnnfxError, InputError, PolicyError

USAGE_ERROR = 2
FAILURE = 1


@contextmanager
def errors_shown() -> Iterator[None]:
    """An error of gnnfx ends the command with one line and a code."""
    try:
        yield
    except GnnfxError as error:
        typer.echo(f"error: {error}", err=True)
        wrong_usage = isinstance(error, InputError | PolicyError)
        raise typer.Exit(USAGE_ERROR if wrong_usage else FAILURE) from error
