"""Quantized training compared with float and with quantization after training, on one data set.

The methods whose names end in -degree give each bucket of in-degrees its own scale.

What the table shows is the test accuracy of the program that runs: the prepared module in
float32, otherwise the integer module that `convert` or `optimize` gives; only DQ-paper, which
rounds where Degree-Quant's own code does, is simulated.  Models are selected on validation only.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GAT, GCN, MLP, GINConv, GraphSAGE

from gnnfx.api import optimize
from gnnfx.backend.prepared import PreparedModule
from gnnfx.demo import DATA_ROOT, accuracy, load
from gnnfx.errors import InputError
from gnnfx.finetune import finetune
from gnnfx.policy import PRESETS, Policy, Quantize
from gnnfx.prepare import convert, prepare
from gnnfx.training_policy import Training

Method = Literal["FP32", "PTQ", "PTQ-degree", "QAT", "DQ", "DQ-degree", "DQ-paper"]
METHODS: tuple[Method, ...] = get_args(Method)
EXECUTED: tuple[Method, ...] = ("FP32", "PTQ", "QAT", "DQ")
AFTER_TRAINING: tuple[Method, ...] = ("FP32", "PTQ", "PTQ-degree")
MODELS = ("GCN", "SAGE", "GIN", "GAT")
QUICK_EPOCHS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained model.  FP32 has 32 bits.

    epochs: the most epochs it was allowed.  best_epoch: the one that validation selected.
    validation, test: accuracy between 0 and 1, or the root mean squared error.
    """

    dataset: str
    model: str
    method: Method
    bits: int
    seed: int
    epochs: int
    best_epoch: int
    validation: float
    test: float

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
    out: a file of JSON lines that gets each outcome when it is there; what it holds is not run
        again.
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
        trainer = _Trainer(dataset, model, root, seed, epochs, console)
        for method, width in runs(methods, bits):
            key = (dataset, model, method, width, seed, epochs)
            if key not in known:
                if console is not None:
                    console.print(f"{model} on {dataset}, {method}, {width} bits, seed {seed}")
                known[key] = Outcome(*key, *trainer.train(method, width))
                append(out, known[key])
            found.append(known[key])
    return found


def read(path: Path | None) -> list[Outcome]:
    """The outcomes that `append` has written to `path`; none if there is no file."""
    if path is None or not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def append(path: Path | None, outcome: Outcome) -> None:
    """Write one more line to `path`, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def table(outcomes: Sequence[Outcome], errors: Collection[str] = ()) -> Table:
    """Mean and standard deviation over seeds, and the difference to FP32 of the same seeds.

    errors: data sets whose outcomes are errors and no accuracies.
    """
    groups: dict[tuple[str, str, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.dataset, outcome.model, outcome.method, outcome.bits)
        groups.setdefault(key, []).append(outcome)
    result = Table(
        title="test accuracy in %" + (", or root mean squared error" if errors else ""),
        caption="mean (standard deviation) over seeds or folds",
    )
    for column in ("dataset", "model", "method"):
        result.add_column(column, no_wrap=True)
    for column in ("bits", "seeds", "test", "difference to FP32"):
        result.add_column(column, justify="right", no_wrap=True)
    for (dataset, model, method, width), group in groups.items():
        unit, digits = (1, 3) if dataset in errors else (100, 2)
        tests = {o.seed: unit * o.test for o in group}
        spread = statistics.stdev(tests.values()) if len(tests) > 1 else 0.0
        floats = {o.seed: unit * o.test for o in groups.get((dataset, model, "FP32", 32), [])}
        differences = [tests[seed] - floats[seed] for seed in tests if seed in floats]
        shown = method != "FP32" and differences
        difference = f"{statistics.mean(differences):+.{digits}f}" if shown else ""
        mean = f"{statistics.mean(tests.values()):.{digits}f} ({spread:.{digits}f})"
        result.add_row(dataset, model, method, str(width), str(len(group)), mean, difference)
    return result


def runs(methods: Sequence[Method], bits: Sequence[int]) -> list[tuple[Method, int]]:
    """Each method with each width that it has."""
    return [(m, b) for m in methods for b in ([32] if m == "FP32" else bits)]


class _Trainer:
    """One seed of one model on one graph; float training is done once for all that need it."""

    def __init__(
        self,
        dataset: str,
        model: str,
        root: Path,
        seed: int,
        epochs: int,
        console: Console | None,
    ) -> None:
        # GIN's sums are of words as they are; means and attention do better on shares of words.
        self._data, classes = load(dataset, root=root, seed=seed, normalize=model != "GIN")
        self._model, self._seed, self._epochs, self._console = model, seed, epochs, console
        self._arguments = (self._data.x, self._data.edge_index)
        self._classes = classes
        self._float: tuple[PreparedModule, int] | None = None

    def train(self, method: Method, bits: int) -> tuple[int, float, float]:
        """Best epoch, validation accuracy and test accuracy."""
        data = self._data
        if method in AFTER_TRAINING:
            self._float = self._float or self._finetune(PRESETS["fp32"])
            prepared, best = self._float
        else:
            prepared, best = self._finetune(policy(method, bits))
        final = executed(prepared, method, bits, self._build, [self._arguments])
        with torch.no_grad():
            output = final(*self._arguments)
        validation, test = (accuracy(output, data.y, data[m]) for m in ("val_mask", "test_mask"))
        return best, validation, test

    def _build(self) -> nn.Module:
        return build(self._model, self._data.num_features, self._classes)

    def _finetune(self, chosen: Policy) -> tuple[PreparedModule, int]:
        torch.manual_seed(self._seed)
        prepared = prepare(self._build(), chosen, self._arguments)
        history = finetune(
            prepared,
            self._data,
            epochs=self._epochs,
            learning_rate=0.005 if self._model == "GAT" else 0.01,
            seed=self._seed,
            console=self._console,
        )
        return prepared, history.best.epoch


def executed(
    prepared: PreparedModule,
    method: Method,
    bits: int,
    build: Callable[[], nn.Module],
    calls: Sequence[tuple[Any, ...]],
    skip: tuple[str, ...] = (),
) -> nn.Module:
    """What runs after training by `method`: integers, where there are integer kernels for it.

    build: makes the model that was trained.  calls: arguments, what quantization after training
        sees of the training data.
    skip: modules that stay float32.
    """
    if method in ("QAT", "DQ", "DQ-degree"):
        return convert(prepared)
    if method not in ("PTQ", "PTQ-degree"):
        return prepared.eval()
    module = build()
    module.load_state_dict(prepared.state_dict())
    scales = _scales(method)
    after = Policy(Quantize(bits, bits, observer="mse", scales=scales, layers="all"), skip)  # type: ignore[arg-type]
    return optimize(module.eval(), after, calls[0], calibration=calls)


def policy(method: Method, bits: int) -> Policy:
    """What `prepare` trains under."""
    if method in AFTER_TRAINING:
        return PRESETS["fp32"]  # quantization comes after training
    training = Training()
    if method in ("DQ", "DQ-degree", "DQ-paper"):
        preset = PRESETS["int8-dq" if bits == 8 else "int4-dq"].quantize
        assert preset is not None
        placement: Literal["kernels", "paper"] = "paper" if method == "DQ-paper" else "kernels"
        training = replace(preset.training, placement=placement)
    rounded = Quantize(bits, bits, scales=_scales(method), layers="all", training=training)  # type: ignore[arg-type]
    return Policy(rounded)


def _scales(method: Method) -> Literal["tensor", "degree"]:
    return "degree" if method.endswith("-degree") else "tensor"


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
