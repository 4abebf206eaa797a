"""What was done to a model: layer by layer, in bytes, and what was left alone and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from gnnfx.figures import Figures, draw
from gnnfx.ir.program import Program
from gnnfx.pass_manager import Remark
from gnnfx.trials import Trials
from gnnfx.tuned import Tuned

_COMPUTE = (
    "aten.linear.default",
    "aten.mm.default",
    "aten.addmm.default",
    "aten.matmul.default",
    "linear",
    "sparse_linear",
    "csr_linear",
    "gather",
    "scatter",
    "edge_softmax",
    "segment_softmax",
    "aggregate",
    "attend_gat",
    "attend_gatv2",
    "attend_dot",
)
_NAMES = {"aten.linear.default": "linear", "aten.mm.default": "mm", "aten.addmm.default": "addmm"}


@dataclass(frozen=True)
class Layer:
    """One module of the model in the optimized program.

    runs_as: ops of the final program, e.g. 'quantized_linear int8'.
    bytes_before, bytes_after: parameters and buffers of the module itself.
    done, left: what passes did, and what they left alone with the reason.
    """

    module: str
    runs_as: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    done: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All layers, and the bytes of the whole model.

    kept: paths of submodules that run as they were ('' for the whole model), and why.
    trials: what was tried to keep a metric, where one was given.
    figures: what rounding does to the first calibration sample, where there was one.
    tuned: alternatives that were timed on the example, where that was asked for.
    """

    policy: str
    layers: tuple[Layer, ...]
    bytes_before: int
    bytes_after: int
    kept: tuple[tuple[str, str], ...] = ()
    trials: Trials | None = None
    figures: Figures | None = None
    tuned: Tuned | None = None

    @staticmethod
    def of(
        policy: str,
        before: dict[str, Tensor],
        after: Program,
        remarks: Iterable[Remark],
        kept: tuple[tuple[str, str], ...] = (),
        figures: Figures | None = None,
    ) -> Report:
        """The report of a program made from a model with the tensors `before`."""
        remarks = list(remarks)
        ops = _ops_by_module(after)
        owner = {name: _owner(name, before) for name in after.tensors}
        modules = dict.fromkeys([*ops, *(r.module for r in remarks), *owner.values()])
        layers = []
        for module in modules:
            layers.append(
                Layer(
                    module=module,
                    runs_as=tuple(ops.get(module, ())),
                    bytes_before=_bytes(t for n, t in before.items() if _parent(n) == module),
                    bytes_after=_bytes(t for n, t in after.tensors.items() if owner[n] == module),
                    done=_texts(remarks, module, done=True),
                    left=_texts(remarks, module, done=False),
                )
            )
        shown = tuple(x for x in layers if any((x.runs_as, x.bytes_before, x.done, x.left)))
        left = {id(m): m for m in after.kept.values()}.values()
        bytes_kept = sum(_bytes([*m.parameters(), *m.buffers()]) for m in left)
        bytes_after = _bytes(after.tensors.values()) + bytes_kept
        total = _bytes(before.values())
        return Report(policy, shown, total, bytes_after, kept, figures=figures)

    @staticmethod
    def of_kept(policy: str, before: dict[str, Tensor], reason: str) -> Report:
        """The report of a model that runs as it was."""
        total = _bytes(before.values())
        return Report(policy, (), total, total, (("", reason),))

    def table(self) -> Table:
        """One row a layer."""
        table = Table(title=f"gnnfx report, policy {self.policy}")
        for column in ("layer", "runs as", "bytes before", "bytes after", "remarks"):
            table.add_column(column, justify="right" if "bytes" in column else "left")
        for layer in self.layers:
            remarks = [*layer.done, *(f"left: {text}" for text in layer.left)]
            table.add_row(
                layer.module or "(top)",
                "\n".join(layer.runs_as),
                f"{layer.bytes_before:,}",
                f"{layer.bytes_after:,}",
                "\n".join(remarks),
            )
        for path, reason in self.kept:
            table.add_row(path or "(top)", "kept as it is", "", "", reason)
        table.add_section()
        table.add_row("total", "", f"{self.bytes_before:,}", f"{self.bytes_after:,}", "")
        return table

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Report:
        """The report that `to_dict`, or the JSON of it, describes."""
        layers = tuple(Layer(**_tuples(layer)) for layer in data["layers"])
        kept = tuple((path, reason) for path, reason in data["kept"])
        trials = data.get("trials") and Trials.from_dict(data["trials"])
        figures = data.get("figures") and Figures.from_dict(data["figures"])
        tuned = data.get("tuned") and Tuned.from_dict(data["tuned"])
        rest = {"layers": layers, "kept": kept, "trials": trials, "figures": figures}
        return Report(**{**data, **rest, "tuned": tuned})

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw figures and trials to a .png, .pdf or .svg; see `gnnfx.figures.draw`."""
        draw(self.figures, self.trials, Path(path))

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as capture:
            console.print(self.table())
            if self.trials is not None:
                console.print(self.trials.table())
            if self.tuned is not None:
                console.print(self.tuned.table())
        return capture.get()


def _tuples(layer: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where a layer has tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in layer.items()}


def _ops_by_module(program: Program) -> dict[str, list[str]]:
    ops: dict[str, list[str]] = {}
    for instr in program.instrs:
        if instr.op in _COMPUTE and instr.domain.value in ("node", "edge", "graph", "other"):
            ops.setdefault(instr.module, []).append(f"{_NAMES.get(instr.op, instr.op)} float32")
        elif instr.op.startswith("quantized_"):
            weight_bits = instr.args.get("weight_bits", 8)
            ops.setdefault(instr.module, []).append(f"{instr.op} int{weight_bits}")
    return ops


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _owner(name: str, before: dict[str, Tensor]) -> str:
    """The module of the original tensor that a derived name starts with."""
    stem = name
    while stem and stem not in before:
        stem = _parent(stem)
    return _parent(stem) if stem else ""


def _texts(remarks: list[Remark], module: str, done: bool) -> tuple[str, ...]:
    return tuple(dict.fromkeys(r.text for r in remarks if r.module == module and r.done is done))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
