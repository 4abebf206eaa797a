"""The `gnnfx` command."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gnnfx import artifact, artifact_commands, compress_commands
from gnnfx import demo as demo_module
from gnnfx import dump as dump_module
from gnnfx import qat as qat_module
from gnnfx.shown_errors import errors_shown

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


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
    with errors_shown():
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
    console.print(result.table())
    console.print(result.module.report.table())


@app.command()
def optimize(
    model: Annotated[str, typer.Argument(help="FILE.py:FUNCTION, a function that makes a model.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    policy: Annotated[str, typer.Option(help="fp32, int8 or int4.")] = "int8",
) -> None:
    """Optimize a model and save it.

    FUNCTION takes nothing and returns a model, (model, example_inputs) or (model, args, kwargs).
    """
    with errors_shown():
        optimized = artifact_commands.optimize_file(model, policy, output)
    Console().print(optimized.report.table())


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A file written by optimize or gnnfx.save.")],
    ir: Annotated[bool, typer.Option("--ir", help="Print the program, too.")] = False,
) -> None:
    """Show what a saved model holds: its report, its tensors and its size."""
    with errors_shown():
        found = artifact.read(path)
    console = Console()
    console.print(found.report.table())
    console.print(artifact_commands.tensor_table(found))
    typer.echo(artifact_commands.summary(path, found))
    if ir:
        typer.echo(found.text, nl=False)


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
        Path | None, typer.Option(help="File of JSON lines that keeps outcomes between runs.")
    ] = None,
) -> None:
    """Train with and without rounding, and compare the accuracy of what runs."""
    with errors_shown():
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
    Console().print(qat_module.table(outcomes))


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
    with errors_shown():
        text = dump_module.run(source, policy=policy, after=after, html_to=html, folder=to)
    typer.echo(text, nl=False)


app.command("prune")(compress_commands.prune_command)
app.command("compress")(compress_commands.compress_command)
