"""What each stage of `gnnfx.compress` cost and left: accuracy, size, operations, latency."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gnnfx.backend.prepared import PreparedModule
from gnnfx.frontend.signature import flatten
from gnnfx.measure import Spread, interleaved_seconds
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.pipeline import raise_passes
from gnnfx.pruning.flops import count_flops
from gnnfx.pruning.storage import pack, packed_bytes

_SECONDS_OF_TIMING = 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """The model after one stage.

    validation, test: accuracy (0 to 1) or, in regression, the mean absolute error; test is None
        without test data.  Only validation is ever selected by.
    parameters, nonzero: values of the float model's parameters, and those other than zero.
    weight_bytes: all tensors of what runs, each in its smallest lossless form.
    flops: operations of one forward pass on the example, zero weights left out.
    latency_ms: median of repeated calls on one graph.

    Bytes and latency are None where a stage only simulates what will run, latency also where it
    was not asked for.
    """

    name: str
    validation: float
    test: float | None
    parameters: int
    nonzero: int
    weight_bytes: int | None
    flops: int
    latency_ms: float | None


@dataclass(frozen=True)
class CompressionReport:
    """All stages, in order."""

    stages: tuple[Stage, ...]

    def table(self) -> Table:
        """One row a stage."""
        table = Table(title="gnnfx compress", box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("stage", no_wrap=True)
        for column in ("valid.", "test", "parameters", "non-zero", "bytes", "MFLOP", "ms"):
            table.add_column(column, justify="right", no_wrap=True)
        for stage in self.stages:
            sizes = (stage.parameters, stage.nonzero, stage.weight_bytes)
            table.add_row(
                stage.name,
                f"{stage.validation:.4f}",
                "" if stage.test is None else f"{stage.test:.4f}",
                *("" if size is None else f"{size:,}" for size in sizes),
                f"{stage.flops / 1e6:,.2f}",
                "" if stage.latency_ms is None else f"{stage.latency_ms:.2f}",
            )
        return table

    def to_json(self) -> str:
        """The stages, as JSON text."""
        return json.dumps([asdict(stage) for stage in self.stages], indent=1)

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the smallest lossless forms; a tensor of several names counts once."""
    once = {(t.data_ptr(), t.shape, t.dtype): t for t in tensors}
    return sum(packed_bytes(pack(tensor)) for tensor in once.values())


def flops(prepared: PreparedModule) -> int:
    """Operations of one forward pass of a float module on its example."""
    traced = prepared.traced()
    program = PassManager(raise_passes()).run(traced.program, PassContext())
    leaves = flatten(traced.example)
    return count_flops(program, tuple(leaves[name] for name in traced.leaves)).total


def latency_ms(call: Callable[[], object]) -> float:
    """The median of repeated calls."""
    with torch.no_grad():
        seconds = interleaved_seconds({"call": call}, budget=_SECONDS_OF_TIMING)
    return 1000 * Spread.of(seconds["call"]).median
