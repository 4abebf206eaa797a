"""The feature part of a program in training, as an fx graph over a module that owns its tensors.

Instructions that are the identity in the IR become what they stand for:

    observe(x, 'h', rank)        _quantizers.at_h(x, _protect(rank))
    observe(x, 'h', bucket=b)    _quantizers.at_h(x, bucket=b)
    linear(a, w) of codes        linear(a, _weights.at_w(w))
    dropout(x, p)                functional.dropout(x, p, <module>.training)
    linear(x, w) of an input     linear_of_nonzeros(x, nonzeros(x), w)      if it is mostly zeros
    batch norm                   batch_norm(x, ..., <module>.training)

where <module> is the model's own, so that .train() and .eval() of a part of it act on that part.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument
from torch.nn import functional

from gnnfx.backend.sparse_input import linear_of_nonzeros, nonzeros, reads_nonzeros
from gnnfx.ir.patterns import is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.passes.fold_batch_norm import BATCH_NORM, scale_and_shift

QUANTIZERS, WEIGHTS, EDGE_WEIGHTS, PROTECT = (
    "_quantizers",
    "_weights",
    "_edge_weights",
    "_protect",
)


def site(name: str) -> str:
    """The attribute that holds the quantizer of value `name`, and nothing that modules have."""
    return f"at_{name}"


def observed(value: Instr) -> Instr | None:
    """The observer that `value` comes from, looked up through dropout, or None."""
    while value.op == "dropout":
        value = value.arg
    return value if value.op == "observe" else None


def quantized_weights(program: Program) -> dict[str, Instr]:
    """The parameters that are rounded, by name of the instruction."""
    return {
        linear.args["weight"].name: linear.args["weight"]
        for linear in program.find("aten.linear.default")
        if is_param(linear.args["weight"]) and observed(linear.arg) is not None
    }


def training_graph(
    program: Program, owner: nn.Module, draw_for_each_layer: bool, densities: dict[str, float]
) -> fx.Graph:
    """The graph of `program` that reads parameters, quantizers and modes from `owner`.

    densities: share of values that are not zero in inputs of the example, by name.
    """
    builder = _Builder(owner, draw_for_each_layer, densities)
    for instr in program.instrs:
        builder.copies[instr.node] = builder.copy(instr)
    return builder.graph


class _Builder:
    def __init__(
        self, owner: nn.Module, draw_for_each_layer: bool, densities: dict[str, float]
    ) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self._owner = owner
        self._each_layer = draw_for_each_layer
        self._densities = densities
        self._masks: dict[fx.Node, fx.Node] = {}
        self._nonzeros: dict[fx.Node, fx.Node] = {}

    def copy(self, instr: Instr) -> fx.Node:
        match instr.op:
            case "observe":
                return self._quantizer(instr)
            case "dropout" if reads_nonzeros(sole_user(instr), self._densities):
                return self._of(instr.arg)  # the layer that reads it drops what is not zero
            case "aten.linear.default" if reads_nonzeros(instr, self._densities):
                return self._linear_of_nonzeros(instr)
            case "dropout":
                args = (self._of(instr.arg), instr.args["p"], self._training(instr.module))
                return self.graph.call_function(functional.dropout, args)
            case "gather":
                # The dispatcher's own backward keeps the index alone, a registered one the rows.
                args = (self._of(instr.arg), 0, self._of(instr.args["index"]))
                return self.graph.call_function(torch.ops.aten.index_select.default, args)
            case "getitem" if instr.arg.op == BATCH_NORM:
                return self.copies[instr.arg.node]
            case _ if instr.op == BATCH_NORM:
                return self._batch_norm(instr)
        node = self.graph.node_copy(instr.node, self.copies.__getitem__)
        if instr.op == "aten.linear.default" and is_param(instr.args["weight"]):
            quantizer = f"{WEIGHTS}.{site(instr.args['weight'].name)}"
            self._round(node, instr, "weight", quantizer, "input")
        elif instr.op == "aggregate" and len(instr.shape) == 2:
            self._round(node, instr, "weight", EDGE_WEIGHTS, "x")
        return node

    def _of(self, instr: Instr) -> fx.Node:
        return self.copies[instr.node]

    def _linear_of_nonzeros(self, linear: Instr) -> fx.Node:
        x = self._of(linear.arg)
        if x not in self._nonzeros:
            self._nonzeros[x] = self.graph.call_function(nonzeros, (x,))
        drop: tuple[Argument, Argument] = 0.0, False
        if linear.arg.op == "dropout":
            drop = linear.arg.args["p"], self._training(linear.arg.module)
        weight, bias = linear.args["weight"], linear.args["bias"]
        tensors = (self._of(weight), None if bias is None else self._of(bias))
        args = (x, self._nonzeros[x], *tensors, *drop)
        return self.graph.call_function(linear_of_nonzeros, args)

    def _quantizer(self, observe: Instr) -> fx.Node:
        args = [self._of(observe.arg)]
        if (rank := observe.args["rank"]) is not None:
            args.append(self._mask(self._of(rank)))
            args += [self._of(owner)] if (owner := observe.args["owner"]) is not None else []
        bucket = observe.args["bucket"]
        named: dict[str, Argument] = {} if bucket is None else {"bucket": self._of(bucket)}
        target = f"{QUANTIZERS}.{site(observe.args['name'])}"
        return self.graph.call_module(target, tuple(args), named)

    def _mask(self, rank: fx.Node) -> fx.Node:
        if self._each_layer or rank not in self._masks:
            self._masks[rank] = self.graph.call_module(PROTECT, (rank,))
        return self._masks[rank]

    def _round(self, node: fx.Node, instr: Instr, name: str, quantizer: str, codes: str) -> None:
        """Round the argument `name` if the argument `codes` is rounded."""
        operand = instr.args[name]
        if operand is None or observed(instr.args[codes]) is None:
            return
        with self.graph.inserting_before(node):
            rounded = self.graph.call_module(quantizer, (self._of(operand),))
        node.replace_input_with(self._of(operand), rounded)

    def _batch_norm(self, norm: Instr) -> fx.Node:
        args = norm.args
        path = args["running_mean"].param.rpartition(".")[0]
        tensors = [
            None if args[name] is None else self._of(args[name])
            for name in ("input", "weight", "bias", "running_mean", "running_var")
        ]
        count = f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        tracked = self.graph.get_attr(count) if _has(self._owner, count) else None
        rest = (tracked, args["momentum"], args["eps"], self._training(path))
        return self.graph.call_function(batch_norm, (*tensors, *rest))

    def _training(self, path: str) -> fx.Node:
        """The mode of the model's module at `path`."""
        name = f"{path}.training" if path and _has(self._owner, path) else "training"
        return self.graph.get_attr(name)


def _has(owner: nn.Module, path: str) -> bool:
    module = owner
    for part in path.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    tracked: Tensor | None,
    momentum: float,
    eps: float,
    training: bool,
) -> Tensor:
    """Batch norm of `x` [N, C, ...]; in eval mode as the one multiply-add that it converts to.

    A momentum of 0 stands for the cumulative average, as torch passes on what was None.
    """
    if training:
        if tracked is not None:
            tracked.add_(1)
        factor = momentum or 1.0 / float(tracked if tracked is not None else 1)
        return functional.batch_norm(x, mean, var, weight, bias, True, factor, eps)
    scale, shift = scale_and_shift(mean, var, weight, bias, eps)
    shape = (-1, *(1,) * (x.dim() - 2))
    return x * scale.to(x.dtype).view(shape) + shift.to(x.dtype).view(shape)
