"""The feature part of a program in training, as an fx graph over a module that owns its tensors.

Instructions that are the identity in the IR become what they stand for:

    observe(x, 'h', rank)        _quantizers.at_h(x, _protect(rank))
    observe(x, 'h', bucket=b)    _quantizers.at_h(x, bucket=b)
    observe(x * norm, 'h')       _quantizers.at_h(x, row_scale=norm)        norm [N, 1]
    linear(a, w) of codes        linear(a, _weights.at_w(w))
    dropout(x, p)                training_ops.dropout(x, p, <module>.training)
    linear(x, w) of an input     linear_of_nonzeros(x, nonzeros(x), w)      if it is mostly zeros;
                                 dropout and quantizer in between belong to it
    relu(linear(x, w, b))        linear_relu(x, w, b)                       in one pass
    gather(x, index)             gather(x, index)                           [of training_ops]
    sum(view(h) * att, -1)       linear(h, spread(att))                     of codes, too
    batch norm                   batch_norm(x, ..., <module>.training)

where <module> is the model's own, so that .train() and .eval() of a part of it act on that part.
"""

from __future__ import annotations

import operator

from torch import fx, nn
from torch.fx.node import Argument
from torch.nn import functional

from gnnfx.backend.sparse_input import (
    before,
    behind,
    linear_of_nonzeros,
    nonzeros,
    reads_nonzeros,
    rounded,
)
from gnnfx.backend.training_ops import batch_norm, dropout, gather, linear_relu
from gnnfx.ir.patterns import is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.passes.choose_qparams import weighted
from gnnfx.passes.fold_attention_scores import head_scores, spread
from gnnfx.passes.fold_batch_norm import BATCH_NORM

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
    return {w.name: w for _, value, w in weighted(program) if observed(value) is not None}


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
        self._rounded: dict[tuple[str, fx.Node], fx.Node] = {}

    def copy(self, instr: Instr) -> fx.Node:
        match instr.op:
            case "observe" | "dropout" if reads_nonzeros(behind(instr), self._densities):
                return self._of(instr.arg)  # the layer that reads it does this to what is not zero
            case "observe":
                return self._quantizer(instr)
            case "aten.mul.Tensor" if _is_scaled_by_quantizer(instr) or _is_of_scores(instr):
                return self._of(instr.arg)  # what reads it multiplies
            case "dropout":
                args = (self._of(instr.arg), instr.args["p"], self._training(instr.module))
                return self.graph.call_function(dropout, args)
            case "gather":
                rows = self._of(instr.arg), self._of(instr.args["index"])
                return self.graph.call_function(gather, rows)
            case "aten.sum.dim_IntList" if (scores := head_scores(instr)) is not None:
                return self._head_scores(*scores)
            case "getitem" if instr.arg.op == BATCH_NORM:
                return self.copies[instr.arg.node]
            case _ if instr.op == BATCH_NORM:
                return self._batch_norm(instr)
            case "aten.relu.default" if _is_activated(instr.arg):
                return self._of(instr.arg)
        if reads_nonzeros(instr, self._densities):
            node = self._linear_of_nonzeros(instr)
        elif _is_activated(instr):
            node = self.graph.call_function(linear_relu, self._operands(instr))
        else:
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
        between = before(linear)[0]
        x, weight, bias = self._operands(linear)
        assert x is not None
        if x not in self._nonzeros:
            self._nonzeros[x] = self.graph.call_function(nonzeros, (x,))
        csr = self._nonzeros[x]
        if (observe := between.get("observe")) is not None:
            quantizer, (_, *mask), _ = self._quantizer_call(observe)
            module = self.graph.get_attr(quantizer)
            pair = self.graph.call_function(rounded, (module, x, csr, *mask))
            x, csr = (self.graph.call_function(operator.getitem, (pair, i)) for i in range(2))
        drop: tuple[Argument, Argument] = 0.0, False
        if (dropped := between.get("dropout")) is not None:
            drop = dropped.args["p"], self._training(dropped.module)
        args = (x, csr, weight, bias, *drop, _is_activated(linear))
        return self.graph.call_function(linear_of_nonzeros, args)

    def _head_scores(self, value: Instr, attention: Instr) -> fx.Node:
        weight = self.graph.call_function(spread, (self._of(attention),))
        if observed(value) is not None:
            weight = self.graph.call_module(f"{WEIGHTS}.{site(attention.name)}", (weight,))
        return self.graph.call_function(functional.linear, (self._of(value), weight))

    def _operands(self, linear: Instr) -> tuple[fx.Node | None, ...]:
        tensors = (linear.args[name] for name in ("input", "weight", "bias"))
        return tuple(None if t is None else self._of(t) for t in tensors)

    def _quantizer(self, observe: Instr) -> fx.Node:
        return self.graph.call_module(*self._quantizer_call(observe))

    def _quantizer_call(
        self, observe: Instr
    ) -> tuple[str, tuple[fx.Node, ...], dict[str, Argument]]:
        """The name of the quantizer's module, and its arguments."""
        args = [self._of(observe.arg)]
        if (rank := observe.args["rank"]) is not None:
            args.append(self._mask(self._of(rank)))
            args += [self._of(owner)] if (owner := observe.args["owner"]) is not None else []
        bucket = observe.args["bucket"]
        named: dict[str, Argument] = {} if bucket is None else {"bucket": self._of(bucket)}
        if _is_scaled_by_quantizer(observe.arg):
            named["row_scale"] = self._of(observe.arg.args["other"])
        return f"{QUANTIZERS}.{site(observe.args['name'])}", tuple(args), named

    def _mask(self, rank: fx.Node) -> fx.Node:
        if self._each_layer or rank not in self._masks:
            self._masks[rank] = self.graph.call_module(PROTECT, (rank,))
        return self._masks[rank]

    def _round(self, node: fx.Node, instr: Instr, name: str, quantizer: str, codes: str) -> None:
        """Round the argument `name` if the argument `codes` is rounded."""
        operand = instr.args[name]
        if operand is None or observed(instr.args[codes]) is None:
            return
        given = self._of(operand)
        if (quantizer, given) not in self._rounded:
            with self.graph.inserting_before(node):
                self._rounded[quantizer, given] = self.graph.call_module(quantizer, (given,))
        node.replace_input_with(given, self._rounded[quantizer, given])

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


def _is_activated(instr: Instr) -> bool:
    """Whether `instr` is a linear layer of which nothing but a ReLU reads the result."""
    if instr.op != "aten.linear.default":
        return False
    user = sole_user(instr)
    return user is not None and user.op == "aten.relu.default"


def _is_scaled_by_quantizer(instr: Instr) -> bool:
    """Whether `instr` multiplies each row by a number, for nothing but a quantizer."""
    if instr.op != "aten.mul.Tensor" or not isinstance(other := instr.args["other"], Instr):
        return False
    user = sole_user(instr)
    of_rows = other.shape == (instr.arg.shape[0], 1) if len(instr.arg.shape) == 2 else False
    return of_rows and user is not None and user.op == "observe"


def _is_of_scores(instr: Instr) -> bool:
    """Whether `instr` is the product in the scores of heads, and nothing else."""
    user = sole_user(instr)
    return user is not None and user.op == "aten.sum.dim_IntList" and bool(head_scores(user))


def _has(owner: nn.Module, path: str) -> bool:
    module = owner
    for part in path.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True
