"""How many rows a value has in the graphs that a program is made for: a guess for costs."""

from __future__ import annotations

from torch import Tensor

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import Dim, Domain, is_axis, size_of
from gnnfx.pass_manager import PassContext

# Without an example: ten edges a node, on a graph that is worth a thought.
_NODES, _EDGES = 10_000, 100_000


class RowCounts:
    """Row counts in the user's example, or in a graph of ten edges a node if there is none."""

    def __init__(self, program: Program, ctx: PassContext) -> None:
        self._axes: dict[Dim, int] = {}
        for instr, value in zip(program.inputs, ctx.example or (), strict=False):
            if isinstance(value, Tensor) and len(value.shape) == len(instr.shape):
                sizes = zip(instr.shape, value.shape, strict=True)
                self._axes |= {dim: size for dim, size in sizes if is_axis(dim)}

    def of(self, value: Instr) -> int:
        """Rows of `value` [R, ...]."""
        rows = value.shape[0]
        try:
            return int(size_of(rows, {str(name): size for name, size in self._axes.items()}))
        except ValueError:  # a size that the graph's contents decide, or no example
            return _EDGES if value.domain is Domain.EDGE else _NODES
