"""The `gnnfx` command."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from gnnfx import demo as demo_module
from gnnfx import dump as dump_module
from gnnfx.errors import GnnfxError, InputError, PolicyError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

USAGE_ERROR = 2
FAILURE = 1


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"gnnfx {version('gnnfx')}")
        raise typer.Exit


@app.callback()
def main(
    version_: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """A compiler for trained graph neural networks."""


def _fail(error: GnnfxError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    wrong_usage = isinstance(error, InputError | PolicyError)
    raise typer.Exit(USAGE_ERROR if wrong_usage else FAILURE) from error


@app.command()
def demo(
    dataset: Annotated[
        str, typer.Option(help=f"One of {', '.join(demo_module.DATASETS)}.")
    ] = "digits",
    root: Annotated[
        Path, typer.Option(help="Folder of the dataset's files; digits needs none.")
    ] = demo_module.DATA_ROOT,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(demo_module.MODELS)}.")] = "GCN",
    policy: Annotated[str, typer.Option(help="fp32, int8 or int4.")] = "int8",
    epochs: Annotated[int, typer.Option(help="Most epochs to train.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of weights, dropout and splits.")] = 0,
    budget: Annotated[
        float, typer.Option(help="Seconds for each of the two latency measurements.")
    ] = 3.0,
) -> None:
    """Train a model, optimize it, and compare accuracy, latency and memory."""
    console = Console()
    try:
        result = demo_module.run(
            dataset,
            root=root,
            model=model,
            policy=policy,
            epochs=epochs,
            seed=seed,
            budget=budget,
            console=Console(stderr=True),
        )
    except GnnfxError as error:
        _fail(error)
    console.print(result.table())
    console.print(result.module.report.table())


@app.command()
def dump(
    source: Annotated[
        str, typer.Argument(help="file.py:function; it returns a model or (model, inputs).")
    ],
    policy: Annotated[str, typer.Option(help="fp32, int8 or int4.")] = "fp32",
    after: Annotated[
        str | None, typer.Option(help="Stop after this pass; name#2 is its second run.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to look at here.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the text after each pass.")] = None,
) -> None:
    """Show the program that gnnfx makes of a model."""
    try:
        text = dump_module.run(source, policy=policy, after=after, html_to=html, folder=to)
    except GnnfxError as error:
        _fail(error)
    typer.echo(text, nl=False)
