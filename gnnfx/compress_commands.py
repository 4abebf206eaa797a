"""What `gnnfx prune` and `gnnfx compress` do: train a model on a data set, then make it small."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn
from torch_geometric.data import Data

from gnnfx.artifact import save
from gnnfx.checkpoints import Checkpoints, fingerprint
from gnnfx.compress import Compressed, compress
from gnnfx.demo import DATA_ROOT, DATASETS, load
from gnnfx.errors import InputError
from gnnfx.finetune import finetune
from gnnfx.policy import PRESETS, Policy, Prune, Quantize
from gnnfx.prepare import prepare
from gnnfx.qat import MODELS, QUICK_EPOCHS, build
from gnnfx.shown_errors import errors_shown

Dataset = Annotated[str, typer.Option(help=f"One of {', '.join(DATASETS)}.")]
Root = Annotated[Path, typer.Option(help="Folder of the dataset's files; digits needs none.")]
Model = Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}, in any case.")]
Method = Annotated[str, typer.Option(help="structured, fine-grained, global or global-structured.")]
Ratio = Annotated[float, typer.Option(help="Share of the units or weights that goes.")]
Units = Annotated[str, typer.Option(help="What goes as a whole: channels, heads or layers.")]
Criterion = Annotated[str, typer.Option(help="l1, l2, taylor, batch-norm, aggregation or random.")]
Schedule = Annotated[str, typer.Option(help="one-shot, iterative or cubic.")]
Steps = Annotated[int, typer.Option(help="Steps of training that the schedule takes.")]
Epochs = Annotated[int, typer.Option(help="Most epochs of each stage that trains.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, dropout and splits.")]
Quick = Annotated[bool, typer.Option(help="Few epochs, to see that everything works.")]
Folder = Annotated[
    Path | None, typer.Option(help="Keeps finished stages here; the same command goes on.")
]
Output = Annotated[Path | None, typer.Option(help="Save the module here, for gnnfx.load.")]
ReportFile = Annotated[Path | None, typer.Option(help="Write the table here as JSON.")]
Bits = Annotated[int, typer.Option(help="Bits of weights and activations: 8, 4 or 2.")]
DegreeQuant = Annotated[bool, typer.Option(help="Protect nodes of high in-degree in training.")]


def prune_command(
    dataset: Dataset = "Cora",
    root: Root = DATA_ROOT,
    model: Model = "GCN",
    method: Method = "structured",
    ratio: Ratio = 0.5,
    units: Units = "channels",
    criterion: Criterion = "l2",
    schedule: Schedule = "one-shot",
    steps: Steps = 0,
    epochs: Epochs = 200,
    seed: Seed = 0,
    quick: Quick = False,
    checkpoint_dir: Folder = None,
    output: Output = None,
    report: ReportFile = None,
) -> None:
    """Train a model, prune it, train on, and compare what each stage led to."""
    with errors_shown():
        policy = Policy(prune=_prune(method, ratio, units, criterion, schedule, steps, seed))
        epochs = min(epochs, QUICK_EPOCHS) if quick else epochs
        _show(
            run(dataset, model, policy, root, epochs, seed, checkpoint_dir, Console(stderr=True)),
            output,
            report,
        )


def compress_command(
    dataset: Dataset = "Cora",
    root: Root = DATA_ROOT,
    model: Model = "GCN",
    method: Method = "structured",
    ratio: Ratio = 0.5,
    units: Units = "channels",
    criterion: Criterion = "l2",
    schedule: Schedule = "one-shot",
    steps: Steps = 0,
    bits: Bits = 8,
    degree_quant: DegreeQuant = True,
    epochs: Epochs = 200,
    seed: Seed = 0,
    quick: Quick = False,
    checkpoint_dir: Folder = None,
    output: Output = None,
    report: ReportFile = None,
) -> None:
    """Train a model, prune it, train it with rounding, and make integers of it."""
    with errors_shown():
        prune = _prune(method, ratio, units, criterion, schedule, steps, seed)
        policy = Policy(prune=prune, quantize=_quantize(bits, degree_quant))
        epochs = min(epochs, QUICK_EPOCHS) if quick else epochs
        _show(
            run(dataset, model, policy, root, epochs, seed, checkpoint_dir, Console(stderr=True)),
            output,
            report,
        )


def run(
    dataset: str,
    model: str,
    policy: Policy,
    root: Path = DATA_ROOT,
    epochs: int = 200,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    console: Console | None = None,
) -> Compressed:
    """Train `model` on `dataset` and compress it; raises InputError for unknown names."""
    known = {name.lower(): name for name in MODELS}
    if model.lower() not in known:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {model!r}")
    name = known[model.lower()]
    # GIN's sums are of words as they are; means and attention do better on shares of words.
    data, classes = load(dataset, root=root, seed=seed, normalize=name != "GIN")
    training: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": 0.005 if name == "GAT" else 0.01,
        "seed": seed,
    }
    trained = train(name, data, classes, training, checkpoint_dir, console)
    return compress(
        trained,
        policy,
        data,
        example_inputs=(data.x, data.edge_index),
        checkpoint_dir=checkpoint_dir,
        console=console,
        **training,
    )


def train(
    model: str,
    data: Data,
    classes: int,
    training: dict[str, Any],
    checkpoint_dir: Path | None = None,
    console: Console | None = None,
) -> nn.Module:
    """The float model, in eval mode; from the checkpoint if an earlier run has trained it.

    training: for `gnnfx.finetune`.
    """
    torch.manual_seed(training["seed"])
    module = build(model, data.num_features, classes)
    tensors = [*module.state_dict().values(), data.x, data.edge_index, data.y]
    run_ = fingerprint((model, training, torch.__version__), tensors)
    checkpoints = Checkpoints(checkpoint_dir, run_)
    if (known := checkpoints.read("train")) is None:
        prepared = prepare(module, "fp32", (data.x, data.edge_index))
        finetune(prepared, data, console=console, **training)
        state = {key: value.detach().clone() for key, value in prepared.state_dict().items()}
        checkpoints.write("train", {}, state)
        known = {}, state
    module.load_state_dict(known[1])
    return module.eval()


def _prune(
    method: str, ratio: float, units: str, criterion: str, schedule: str, steps: int, seed: int
) -> Prune:
    return Prune(
        ratio=ratio,
        method=method,  # type: ignore[arg-type]
        units=units,  # type: ignore[arg-type]
        criterion=criterion,  # type: ignore[arg-type]
        schedule=schedule,  # type: ignore[arg-type]
        end=steps,
        seed=seed,
    )


def _quantize(bits: int, degree_quant: bool) -> Quantize:
    if not degree_quant:
        return Quantize(bits, bits, layers="all")  # type: ignore[arg-type]
    preset = PRESETS["int8-dq" if bits == 8 else "int4-dq"].quantize
    assert preset is not None
    return Quantize(bits, bits, layers="all", training=preset.training)  # type: ignore[arg-type]


def _show(found: Compressed, output: Path | None, report: Path | None) -> None:
    console = Console()
    console.print(found.report.table())
    console.print(found.module.report.table())
    if output is not None:
        save(found.module, output)
    if report is not None:
        report.write_text(found.report.to_json() + "\n")
