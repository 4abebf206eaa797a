"""What aggregation passes on of each channel, measured on an example graph.

A channel of a node matters as often as a neighbour reads it, so channels are weighted by degree
and by edge weight: the score is the norm of the messages that reach `scatter`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from gnnfx.ir.program import Instr, Program
from gnnfx.pruning.groups import Groups, value_key


def passed_on(program: Program, groups: Groups, inputs: tuple[Any, ...]) -> dict[int, float]:
    """Norm of all messages of each channel, by label, on one call of `program`."""
    runner = _Recorder(program, groups)
    with torch.no_grad():
        runner.run(*inputs)
    return {label: square**0.5 for label, square in runner.squares.items()}


class _Recorder(fx.Interpreter):
    def __init__(self, program: Program, groups: Groups) -> None:
        super().__init__(program.module())
        self.squares: dict[int, float] = {}
        self._axes = {
            scatter.node.name: groups.values.get(value_key(scatter.arg), ())
            for scatter in program.find("scatter")
            if isinstance(scatter.arg, Instr)
        }

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._axes:
            (messages, *_), _ = self.fetch_args_kwargs_from_env(n)
            self._record(messages, n.name)
        return super().run_node(n)

    def _record(self, messages: Tensor, name: str) -> None:
        for dim, labels in enumerate(self._axes[name]):
            if labels is None:
                continue
            others = [d for d in range(messages.dim()) if d != dim]
            squares = messages.double().square().sum(others).tolist()
            for label, square in zip(labels, squares, strict=True):
                self.squares[label] = self.squares.get(label, 0.0) + square
