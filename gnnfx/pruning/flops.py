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

_LINEAR = "aten.linear.default"
# Products, and the position of their left operand.
_PRODUCTS = {
    _LINEAR: 0,
    "aten.mm.default": 0,
    "aten.bmm.default": 0,
    "aten.matmul.default": 0,
    "aten.addmm.default": 1,
    "aten.baddbmm.default": 1,
}


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward pass; a multiply-add counts as two.

    linear: products of matrices, zero weights left out.
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
        self._constant: set[fx.Node] = set()  # made of weights and numbers alone
        self.linear = self.message_passing = self.other = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "get_attr" or (
            n.all_input_nodes and self._constant.issuperset(n.all_input_nodes)
        ):
            self._constant.add(n)
        if n.op != "call_function":
            return result
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if (op := find_op(n.target)) is not None:
            self.message_passing += op.cost(*args, **kwargs).flops
        elif (name := op_name(n.target)) in _PRODUCTS:
            first = _PRODUCTS[name]
            weights = [a in self._constant for a in n.args[first : first + 2]]
            left, right = args[first : first + 2]
            self.linear += _multiplied(left, right.mT if name == _LINEAR else right, weights)
            if first == 1 or (name == _LINEAR and len(args) > 2):
                self.linear += result.numel()  # the bias
        elif isinstance(result, Tensor) and result.is_floating_point():
            self.other += result.numel()
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._weights[target]


def _multiplied(left: Tensor, right: Tensor, weights: list[bool]) -> int:
    """Two operations for each value of [..., N, K] @ [..., K, M] that meets another.

    weights: which of the operands is a weight, whose zeros cost nothing.
    """
    if right.dim() == 1:
        right = right[:, None]
    inner = max(left.shape[-1], 1)
    rows, columns = left.numel() // inner, right.numel() // inner
    if weights[1]:
        matrices = max(columns // max(right.shape[-1], 1), 1)
        return 2 * int((right != 0).sum()) * rows // matrices
    if weights[0] and left.dim() > 1:
        matrices = max(rows // max(left.shape[-2], 1), 1)
        return 2 * int((left != 0).sum()) * columns // matrices
    matrices = max(columns // max(right.shape[-1], 1), 1)
    return 2 * rows * inner * (columns // matrices)


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
