"""Arithmetic of inference and of training, with sparse weights and message passing counted.

Training follows the accounting of Evci et al., "Rigging the Lottery" (arXiv:1911.11134): a
backward pass costs two forward passes, and RigL needs a dense gradient once every `every` steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gnnfx.ir.op import find_op
from gnnfx.ir.program import Program, op_name


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward pass; a multiply-add counts as two.

    linear: products with weights, zero weights left out.
    message_passing: gather, scatter and softmax over edges.
    other: one for each value of everything else.
    """

    linear: int
    message_passing: int
    other: int

    @property
    def total(self) -> int:
        return self.linear + self.message_passing + self.other


def count_flops(
    program: Program, inputs: tuple[Any, ...], weights: Mapping[str, Tensor] | None = None
) -> Flops:
    """Operations of one call of a raised program on `inputs`.

    weights: tensors to use instead of the program's, as those of a masked model.
    """
    counter = _Counter(program, weights or {})
    with torch.no_grad():
        counter.run(*inputs)
    return Flops(counter.linear, counter.message_passing, counter.other)


class _Counter(fx.Interpreter):
    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        super().__init__(program.module())
        self._weights = {**program.tensors, **weights}
        self.linear = self.message_passing = self.other = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "call_function":
            return result
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if (op := find_op(n.target)) is not None:
            self.message_passing += op.cost(*args, **kwargs).flops
        elif op_name(n.target) in ("aten.linear.default", "aten.mm.default", "aten.addmm.default"):
            self.linear += self._product(n, args)
        elif isinstance(result, Tensor) and result.is_floating_point():
            self.other += result.numel()
        return result

    def _product(self, n: fx.Node, args: tuple[Any, ...]) -> int:
        """Two operations for each row and each weight that is not zero, one for each bias."""
        first = 1 if op_name(n.target) == "aten.addmm.default" else 0
        x, weight, node = args[first], args[first + 1], n.args[first + 1]
        if isinstance(node, fx.Node) and node.op == "get_attr":
            weight = self._weights[str(node.target)]
        rows = x.numel() // max(x.shape[-1], 1)
        biased = first == 1 or len(args) > 2
        outputs = int(weight.shape[0 if op_name(n.target) == "aten.linear.default" else 1])
        return int(rows) * (2 * int((weight != 0).sum()) + (outputs if biased else 0))


def dense_training(dense: int, steps: int) -> float:
    """Operations of training a dense model, `dense` being those of its forward pass."""
    return 3.0 * dense * steps


def sparse_training(sparse: int, dense: int, steps: int, every: int, growth: str) -> float:
    """Operations of sparse training.

    growth: 'gradient' (RigL) needs the gradient of all weights at each move, 'random' (SET) none.
    """
    if growth == "random":
        return 3.0 * sparse * steps
    average = (3.0 * sparse * every + 2.0 * sparse + dense) / (every + 1)
    return average * steps


def train_and_prune(sparse: int, dense: int, dense_steps: int, sparse_steps: int) -> float:
    """Operations of dense training, pulled to sparse weights or not, and of masked training."""
    return 3.0 * (dense * dense_steps + sparse * sparse_steps)
