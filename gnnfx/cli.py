"""The `gnnfx` command."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gnnfx import demo as demo_module
from gnnfx import qat as qat_module
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
        typer.echo(f"error: {error}", err=True)
        wrong_usage = isinstance(error, InputError | PolicyError)
        raise typer.Exit(USAGE_ERROR if wrong_usage else FAILURE) from error
    console.print(result.table())
    console.print(result.module.report.table())


@app.command()
def qat(
    dataset: Annotated[
        str, typer.Option(help=f"One of {', '.join(demo_module.DATASETS)}.")
    ] = "Cora",
    root: Annotated[
        Path, typer.Option(help="Folder of the dataset's files; digits needs none.")
    ] = demo_module.DATA_ROOT,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(qat_module.MODELS)}.")] = "GCN",
    bits: Annotated[list[int] | None, typer.Option(help="8, 4 or 2; 8 if not given.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(qat_module.METHODS)}; what runs if not given."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    epochs: Annotated[int, typer.Option(help="Most epochs to train.")] = 200,
    quick: Annotated[bool, typer.Option(help="One seed and few epochs.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON file that keeps outcomes between runs.")
    ] = None,
) -> None:
    """Train with and without rounding, and compare the accuracy of what runs."""
    try:
        outcomes = qat_module.run(
            dataset,
            model,
            methods=method or qat_module.EXECUTED,  # type: ignore[arg-type]
            bits=bits or [8],
            seeds=seeds,
            epochs=epochs,
            quick=quick,
            root=root,
            out=out,
            console=Console(stderr=True),
        )
    except GnnfxError as error:
        typer.echo(f"error: {error}", err=True)
        wrong_usage = isinstance(error, InputError | PolicyError)
        raise typer.Exit(USAGE_ERROR if wrong_usage else FAILURE) from error
    Console().print(qat_module.table(outcomes))
