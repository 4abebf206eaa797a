"""Quantized training compared with float and with quantization after training, on one data set.

What the table shows is the test accuracy of the program that runs: the prepared module in
float32, otherwise the integer module that `convert` or `optimize` gives; only DQ-paper, which
rounds where Degree-Quant's own code does, is simulated.  Models are selected on validation only.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN, MLP, GINConv, GraphSAGE

from gnnfx.api import optimize
from gnnfx.demo import DATA_ROOT, accuracy, load
from gnnfx.errors import InputError
from gnnfx.finetune import finetune
from gnnfx.policy import PRESETS, Policy, Quantize
from gnnfx.prepare import convert, prepare
from gnnfx.training_policy import Training

Method = Literal["FP32", "PTQ", "QAT", "DQ", "DQ-paper"]
METHODS: tuple[Method, ...] = ("FP32", "PTQ", "QAT", "DQ", "DQ-paper")
EXECUTED: tuple[Method, ...] = ("FP32", "PTQ", "QAT", "DQ")
MODELS = ("GCN", "SAGE", "GIN", "GAT")
QUICK_EPOCHS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained model.  Accuracies lie between 0 and 1; FP32 has 32 bits.

    epochs: the most epochs it was allowed.  best_epoch: the one that validation selected.
    """

    dataset: str
    model: str
    method: Method
    bits: int
    seed: int
    epochs: int
    best_epoch: int
    validation_accuracy: float
    test_accuracy: float

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a run the same run."""
        return self.dataset, self.model, self.method, self.bits, self.seed, self.epochs


def run(
    dataset: str = "Cora",
    model: str = "GCN",
    *,
    methods: Sequence[Method] = EXECUTED,
    bits: Sequence[int] = (8,),
    seeds: int = 3,
    epochs: int = 200,
    quick: bool = False,
    root: Path = DATA_ROOT,
    out: Path | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Train `model` by each method, width and seed.

    quick: one seed and few epochs, to see that everything works.
    out: a JSON file that gets each outcome when it is there; runs that it holds are not repeated.
    console: where progress is shown; nowhere if None.

    Raises InputError for unknown models, methods, widths and data.
    """
    if model not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {model!r}")
    if unknown := [m for m in methods if m not in METHODS]:
        raise InputError(f"methods must be of {', '.join(METHODS)}; got {unknown}")
    if wrong := [b for b in bits if b not in (8, 4, 2)]:
        raise InputError(f"bits must be 8, 4 or 2; got {wrong}")
    if seeds < 1:
        raise InputError(f"seeds must be 1 or more, got {seeds}")
    seeds, epochs = (1, min(epochs, QUICK_EPOCHS)) if quick else (seeds, epochs)
    known = {outcome.key: outcome for outcome in read(out)}
    found = []
    for seed in range(seeds):
        # GIN's sums are of words as they are; means and attention do better on shares of words.
        data, classes = load(dataset, root=root, seed=seed, normalize=model != "GIN")
        for method, width in _runs(methods, bits):
            key = (dataset, model, method, width, seed, epochs)
            if key not in known:
                if console is not None:
                    console.print(f"{model} on {dataset}, {method}, {width} bits, seed {seed}")
                best, validation, test = _train(
                    model, data, classes, method, width, seed, epochs, console
                )
                known[key] = Outcome(*key, best, validation, test)
                write(out, list(known.values()))
            found.append(known[key])
    return found


def read(path: Path | None) -> list[Outcome]:
    """The outcomes that `write` has written to `path`; none if there is no file."""
    if path is None or not path.exists():
        return []
    return [Outcome(**outcome) for outcome in json.loads(path.read_text())["outcomes"]]


def write(path: Path | None, outcomes: list[Outcome]) -> None:
    """Replace the outcomes in `path`, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1)
        path.write_text(text + "\n")


def table(outcomes: Sequence[Outcome]) -> Table:
    """Mean and standard deviation over seeds, and the difference to FP32 of the same seeds."""
    groups: dict[tuple[str, str, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.dataset, outcome.model, outcome.method, outcome.bits)
        groups.setdefault(key, []).append(outcome)
    result = Table(title="test accuracy in %", caption="mean (standard deviation) over seeds")
    for column in ("dataset", "model", "method"):
        result.add_column(column, no_wrap=True)
    for column in ("bits", "seeds", "accuracy", "difference to FP32"):
        result.add_column(column, justify="right", no_wrap=True)
    for (dataset, model, method, width), group in groups.items():
        mean = _mean(group)
        spread = _spread(group)
        floats = groups.get((dataset, model, "FP32", 32), [])
        difference = f"{mean - _mean(floats):+.2f}" if floats and method != "FP32" else ""
        row = (str(width), str(len(group)), f"{mean:.2f} ({spread:.2f})", difference)
        result.add_row(dataset, model, method, *row)
    return result


def _mean(outcomes: list[Outcome]) -> float:
    return 100 * statistics.mean(o.test_accuracy for o in outcomes)


def _spread(outcomes: list[Outcome]) -> float:
    values = [100 * o.test_accuracy for o in outcomes]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _runs(methods: Sequence[Method], bits: Sequence[int]) -> list[tuple[Method, int]]:
    return [(m, b) for m in methods for b in ([32] if m == "FP32" else bits)]


def _train(
    model: str,
    data: Data,
    classes: int,
    method: Method,
    bits: int,
    seed: int,
    epochs: int,
    console: Console | None,
) -> tuple[int, float, float]:
    """(best epoch, validation accuracy, test accuracy) of one run."""
    arguments = (data.x, data.edge_index)
    torch.manual_seed(seed)
    module = build(model, data.num_features, classes)
    prepared = prepare(module, policy(method, bits), arguments)
    rate = 0.005 if model == "GAT" else 0.01
    history = finetune(
        prepared, data, epochs=epochs, learning_rate=rate, seed=seed, console=console
    )
    final: nn.Module = prepared.eval()
    if method == "PTQ":
        module.load_state_dict(prepared.state_dict())
        after = Policy(Quantize(bits, bits, observer="mse", layers="all"))  # type: ignore[arg-type]
        final = optimize(module, after, arguments, calibration=[arguments])
    elif method in ("QAT", "DQ"):
        final = convert(prepared)
    with torch.no_grad():
        output = final(*arguments)
    validation, test = (accuracy(output, data.y, data[m]) for m in ("val_mask", "test_mask"))
    return history.best.epoch, validation, test


def policy(method: Method, bits: int) -> Policy:
    """What `prepare` trains under: in float for quantization after training."""
    if method in ("FP32", "PTQ"):
        return PRESETS["fp32"]
    training = Training()
    if method in ("DQ", "DQ-paper"):
        preset = PRESETS["int8-dq" if bits == 8 else "int4-dq"].quantize
        assert preset is not None
        placement: Literal["kernels", "paper"] = "paper" if method == "DQ-paper" else "kernels"
        training = replace(preset.training, placement=placement)
    return Policy(Quantize(bits, bits, layers="all", training=training))  # type: ignore[arg-type]


def build(model: str, features: int, classes: int) -> nn.Module:
    """Two layers of the sizes that are usual for citation graphs."""
    sizes: dict[str, Any] = {"num_layers": 2, "out_channels": classes}
    match model:
        case "GCN":
            return GCN(features, 16, dropout=0.5, **sizes)  # type: ignore[no-any-return]
        case "SAGE":
            return GraphSAGE(features, 64, dropout=0.5, **sizes)  # type: ignore[no-any-return]
        case "GIN":
            return _GIN(features, classes)
        case _:
            return GAT(features, 64, heads=8, dropout=0.6, **sizes)  # type: ignore[no-any-return]


class _GIN(nn.Module):
    """Two GIN layers whose perceptrons are 64 wide.

    Those of `torch_geometric.nn.GIN` are as wide as there are classes in the last layer; with a
    ReLU on 7 channels, some seeds lose a class for good, whatever the training rounds.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                GINConv(MLP([features, 64, 64], norm=None)),
                GINConv(MLP([64, 64, classes], norm=None)),
            ]
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.convs[0](x, edge_index).relu()
        out: Tensor = self.convs[1](functional.dropout(x, 0.5, self.training), edge_index)
        return out
