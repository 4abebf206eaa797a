"""`gnnfx.compress`: prune, train on, train with rounding, convert: one call that can be resumed.

found = gnnfx.compress(model, Policy(prune=Prune(0.5), quantize=Quantize()), data)
found.module                           # integers
print(found.report)                    # accuracy, size and latency after each stage
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from gnnfx.api import as_tuple
from gnnfx.backend.module import OptimizedModule
from gnnfx.backend.prepared import PreparedModule
from gnnfx.checkpoints import Checkpoints, fingerprint
from gnnfx.compression_report import CompressionReport, Stage, flops, latency_ms, stored_bytes
from gnnfx.errors import InputError, PolicyError
from gnnfx.finetune import evaluate, finetune
from gnnfx.frontend.signature import Signature
from gnnfx.frontend.trace import frozen_copy
from gnnfx.pipeline import compression_stages
from gnnfx.policy import Policy, as_policy
from gnnfx.prepare import convert, prepare
from gnnfx.pruner import Pruner
from gnnfx.pruning.masks import keeper_of_zeros
from gnnfx.tasks import TaskName


@dataclass(frozen=True)
class Compressed:
    """What `gnnfx.compress` returns.

    module: what runs; its own `.report` tells of each layer.
    report: what each stage led to.
    """

    module: OptimizedModule
    report: CompressionReport


def compress(
    model: nn.Module,
    policy: str | Policy,
    data: Any,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    task: TaskName = "node-classification",
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    epochs: int = 200,
    patience: int = 100,
    learning_rate: float = 0.01,
    weight_decay: float = 5e-4,
    seed: int = 0,
    timed: bool = True,
    checkpoint_dir: Path | None = None,
    console: Console | None = None,
) -> Compressed:
    """A pruned and quantized module, trained on after each loss.

    The stages follow from the policy: the model as given is pruned (by its schedule, while it
    trains), what is left is fine-tuned, trains with rounding, and becomes integers.  Epochs are
    selected on validation data; test data are looked at for the report alone.

    model: trained; it is not modified.
    policy: at least one of `prune` and `quantize`.
    data: for node classification a PyG `Data` with `y`, `train_mask`, `val_mask` and, if it shall
        be reported, `test_mask`; for graphs a loader of batches with `y`.
    example_inputs: as for `gnnfx.optimize`; if None, what `data` has under the names of forward's
        arguments.
    validation, test: loaders of batches, for tasks on graphs.
    epochs, patience, learning_rate, weight_decay: of each stage that trains, as for `finetune`.
    seed: given to torch's generator at the start of each stage.
    timed: whether the report has latencies; times taken beside other processes mean nothing.
    checkpoint_dir: keeps each stage that is done, as tensors and text.  The same call goes on
        after the last of them, and ends with the same tensors as if it had never been interrupted.
    console: where progress is shown; nowhere if None.

    Raises InputError, PolicyError or TraceError for what the caller can mend, ArtifactError for a
    damaged checkpoint.
    """
    chosen = as_policy(policy)
    if chosen.prune is None and chosen.quantize is None:
        raise PolicyError("the policy neither prunes nor quantizes; expected one of both, or both")
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    training = {
        "epochs": epochs,
        "patience": patience,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "seed": seed,
    }
    example = _example(model, data, example_inputs)
    source = _Source(task, tuple(example), data, validation, test)
    source.verify()
    facts = (chosen, task, training, torch.__version__)
    tensors = [*model.state_dict().values(), *source.tensors()]
    checkpoints = Checkpoints(checkpoint_dir, fingerprint(facts, tensors))
    run = _Run(model, chosen, example, source, training, timed, checkpoints, console)
    for stage in compression_stages(chosen):
        run.do(stage)
    assert run.module is not None
    return Compressed(run.module, CompressionReport(tuple(run.stages)))


@dataclass(frozen=True)
class _Source:
    """Where examples come from; `arguments` are the names under which the model takes them."""

    task: TaskName
    arguments: tuple[str, ...]
    data: Any
    validation: Iterable[Any] | None
    test: Iterable[Any] | None

    def verify(self) -> None:
        """Raise InputError for what is missing before anything is trained."""
        if self.task == "node-classification":
            wanted = ("y", "train_mask", "val_mask")
            if missing := [n for n in wanted if getattr(self.data, n, None) is None]:
                raise InputError(f"data lacks {missing}; node classification needs {list(wanted)}")
        elif self.validation is None:
            raise InputError(
                f"validation must be a loader of batches for task {self.task!r}, got None"
            )

    def metrics(self, module: nn.Module) -> tuple[float, float | None]:
        """(on validation data, on test data if there are any)."""
        validation, test = self.validation, self.test
        if self.task == "node-classification":
            validation = self.data
            test = None if getattr(self.data, "test_mask", None) is None else self.data
        judged = evaluate(module, validation, self.arguments, self.task)
        if test is None:
            return judged, None
        return judged, evaluate(module, test, self.arguments, self.task, "test")

    def tensors(self) -> list[Tensor]:
        """What the examples are known by: nothing of loaders, which may draw anew each time."""
        if self.task != "node-classification":
            return []
        names = (*self.arguments, "y", "train_mask", "val_mask", "test_mask")
        found = [getattr(self.data, name, None) for name in names]
        return [value for value in found if isinstance(value, Tensor)]

    def epochs_of(self, steps: int) -> int:
        """How many epochs `steps` steps of the optimizer take."""
        if self.task == "node-classification":
            return steps
        if not hasattr(self.data, "__len__"):
            raise InputError("data has no length; a schedule of pruning needs a loader that has")
        return math.ceil(steps / max(len(self.data), 1))


class _Run:
    """The model from stage to stage.

    prepared: what trains; module: what runs, once there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        example: dict[str, Any],
        source: _Source,
        training: dict[str, Any],
        timed: bool,
        checkpoints: Checkpoints,
        console: Console | None,
    ) -> None:
        self.stages: list[Stage] = []
        self.module: OptimizedModule | None = None
        self._model = model
        self._policy = policy
        self._example = example
        self._source = source
        self._training = training
        self._timed = timed
        self._checkpoints = checkpoints
        self._console = console
        self._prepared = prepare(model, "fp32", example_kwargs=example)
        self._masked: tuple[str, ...] = ()
        self._flops = 0

    def do(self, stage: str) -> None:
        """Do one stage, or take what a checkpoint has of it."""
        if self._console is not None:
            self._console.print(f"stage: {stage}")
        torch.manual_seed(self._training["seed"])
        kept = self._checkpoints.read(stage)
        known = None if kept is None else kept[1]
        match stage:
            case "prune":
                self._prune(known)
            case "fine-tune":
                self._train(known)
            case "train-rounded":
                policy = replace(self._policy, prune=None)
                self._prepared = prepare(self._prepared, policy, example_kwargs=self._example)
                self._train(known)
            case "convert":
                self.module = convert(self._prepared)
        if kept is not None:
            self.stages.append(Stage(**kept[0]))
            self._flops = self.stages[-1].flops
            return
        self.stages.append(self._measured(stage))
        ends_with = {} if stage in ("dense", "convert") else self._state
        self._checkpoints.write(stage, asdict(self.stages[-1]), ends_with)

    def _prune(self, known: Mapping[str, Tensor] | None) -> None:
        """Mask at once, or while training as the schedule says; then remove."""
        assert self._policy.prune is not None
        prune = self._policy.prune
        pruner = Pruner(self._prepared, prune)
        if known is not None:
            self._prepared.load_state_dict(known)
        elif prune.end == 0 and prune.criterion != "taylor":
            pruner.step()
        else:
            # The last epoch is kept: in earlier ones the schedule had not come to its end.
            epochs = self._source.epochs_of(prune.end + 1)
            training = {**self._training, "epochs": epochs, "patience": epochs}
            self._finetune(training, pruner.step, keep="last")
        self._state = _state(self._prepared)
        self._masked = () if prune.removes else tuple(pruner.weights)
        self._prepared = pruner.remove()

    def _train(self, known: Mapping[str, Tensor] | None) -> None:
        """Train on; single weights that were pruned stay zero."""
        if known is not None:
            self._prepared.load_state_dict(known)
        else:
            pruned = {name: self._prepared.get_parameter(name) for name in self._masked}
            self._finetune(self._training, keeper_of_zeros(pruned))
        self._state = _state(self._prepared)

    def _finetune(
        self, training: dict[str, Any], after_step: Callable[[], None] | None, **options: Any
    ) -> None:
        source = self._source
        finetune(
            self._prepared,
            source.data,
            task=source.task,
            validation=source.validation,
            after_step=after_step,
            console=self._console,
            **training,
            **options,
        )

    def _measured(self, stage: str) -> Stage:
        """The stage as it is: what would run, or what only simulates it while it trains."""
        runs = self._runs(stage)
        if self._prepared.origin.ctx.policy.quantize is None:
            self._flops = flops(self._prepared)
        parameters = [p for p in self._prepared.parameters() if p.requires_grad]
        simulated = isinstance(runs, PreparedModule)
        timed = self._timed and not simulated
        return Stage(
            stage,
            *self._source.metrics(runs),
            parameters=sum(p.numel() for p in parameters),
            nonzero=sum(int(p.count_nonzero()) for p in parameters),
            weight_bytes=None if simulated else stored_bytes(_tensors(runs)),
            flops=self._flops,
            latency_ms=latency_ms(lambda: runs(**self._example)) if timed else None,
        )

    def _runs(self, stage: str) -> nn.Module:
        match stage:
            case "dense":
                return frozen_copy(self._model)
            case "convert":
                assert self.module is not None
                return self.module
            case "train-rounded":
                return self._prepared
        return convert(self._prepared)


def _example(model: nn.Module, data: Any, given: tuple[Any, ...] | None) -> dict[str, Any]:
    """Example inputs by name of the argument."""
    signature = Signature.of(model)
    if isinstance(model, PreparedModule):
        signature = model.origin.traced.signature
    if given is not None:
        return signature.bind(as_tuple(given), {})
    one = data if hasattr(data, "edge_index") else next(iter(data), None)
    names = [name for name in signature.names if getattr(one, name, None) is not None]
    return signature.bind((), {name: getattr(one, name) for name in names})


def _state(prepared: PreparedModule) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in prepared.state_dict().items()}


def _tensors(module: nn.Module) -> list[Tensor]:
    if isinstance(module, OptimizedModule):
        return list(module.tensors().values())
    return [*module.parameters(), *module.buffers()]
