"""How axes map from the operands of an op to its result: one declaration per op family.

Rules see shapes and dataflow only, never the user's layers.  Two questions are asked of each op:
which channels must go together, and whether the result is zero where a masked operand is, for
what is summed over later must be zero there or its removal would change the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gnnfx.ir.program import Instr
from gnnfx.pruning.labels import Channels, Labels, Layout, Unfollowed

Layouts = Layout | list[Layout]
Rule = Callable[["Flow", Instr], Layouts]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Declare how the axes of `ops` are followed."""

    def declare(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, fn))
        return fn

    return declare


class Flow:
    """The layouts found so far, by name of the value; what rules work on."""

    def __init__(self) -> None:
        self.channels = Channels()
        self.layouts: dict[str, Layout | list[Layout]] = {}

    def of(self, value: Any) -> Layout:
        """The layout of an operand that is one tensor."""
        if not isinstance(value, Instr):
            raise Unfollowed(f"operand {value} is no tensor")
        return self.of_name(value.name)

    def of_name(self, name: str) -> Layout:
        """The layout stored under `name`."""
        layout = self.layouts.get(name)
        if not isinstance(layout, Layout):
            raise Unfollowed(f"operand {name} is not one tensor")
        return layout

    def known(self, value: Any) -> bool:
        """Whether an operand is one tensor."""
        return isinstance(value, Instr) and isinstance(self.layouts.get(value.name), Layout)

    def fresh(self, shape: Sequence[Any], zero: bool) -> Layout:
        """A layout with channels of its own along every axis of fixed size."""
        axes = [self.channels.fresh(s) if isinstance(s, int) and s != 1 else None for s in shape]
        return Layout(tuple(axes), (zero,) * len(axes))

    def freeze(self, value: Layout, dims: Sequence[int], reason: str) -> None:
        for dim in dims:
            self.channels.keep(value.axes[dim] or (), reason)

    def sums(self, layout: Layout, dims: Sequence[int], what: str) -> None:
        """Channels along `dims` are summed over: unless zero while masked, they stay."""
        for dim in dims:
            if not layout.zero[dim]:
                reason = f"{what}, where a removed channel would not be zero"
                self.channels.keep(layout.axes[dim] or (), reason)

    def contract(self, left: Layout, i: int, right: Layout, j: int, what: str) -> None:
        """Axis `i` of one operand is multiplied with axis `j` of another and summed over."""
        a, b = left.axes[i], right.axes[j]
        if a is None or b is None:
            self.channels.keep(a or b or (), f"{what} with something of one channel")
            return
        self.channels.join(a, b)
        if not (left.zero[i] or right.zero[j]):
            self.sums(left, [i], what)

    def broadcast(self, operands: Sequence[Layout], rank: int) -> list[Labels | None]:
        """The joined axes of operands that are aligned at the right."""
        axes: list[Labels | None] = [None] * rank
        for operand in operands:
            for back, labels in enumerate(reversed(operand.axes), start=1):
                if labels is None:
                    continue
                if (other := axes[-back]) is not None:
                    self.channels.join(other, labels)
                axes[-back] = labels
        return axes


def dims_of(value: Any, rank: int) -> list[int]:
    """A dimension or a list of them, counted from 0; None and [] stand for all."""
    given = [value] if isinstance(value, int) else (value or list(range(rank)))
    return [d % rank for d in given]


def _named(names: str, kind: str = "default") -> tuple[str, ...]:
    return tuple(f"aten.{name}.{kind}" for name in names.split())


# The result is zero where any operand is zero, where all are, where the first is, or nowhere.
_ZERO_IF = {
    "any": (*_named("mul", "Tensor"), *_named("mul", "Scalar"), *_named("logical_and")),
    "all": (
        *_named("add sub", "Tensor"),
        *_named("maximum minimum"),
        *_named("where", "self"),
    ),
    "first": (
        *_named("div", "Tensor"),
        *_named("div", "Scalar"),
        *_named("_prelu_kernel prelu"),
        *_named("relu leaky_relu tanh elu celu selu gelu silu mish hardswish relu6"),
        *_named("abs neg sqrt sin atan sign floor ceil round expm1 log1p square softsign"),
        *_named("clone detach alias contiguous dropout zeros_like lift_fresh_copy _to_copy"),
        *_named("nan_to_num"),
        "aten.to.dtype",
        "aten.to.device",
        "aten.to.dtype_layout",
        "dropout",
    ),
    "never": (
        *_named("sigmoid hardsigmoid exp log cos rsqrt reciprocal softplus log_sigmoid"),
        *_named("ones_like full_like logical_not logical_or isinf isnan isfinite"),
        *_named("eq ne gt ge lt le", "Tensor"),
        *_named("eq ne gt ge lt le rsub", "Scalar"),
        *_named("pow", "Scalar"),
        *_named("pow", "Tensor_Tensor"),
        "edge_softmax",
    ),
}


def _elementwise(flow: Flow, instr: Instr, zero_if: str) -> Layout:
    tensors = [flow.of(a) for a in instr.args.values() if flow.known(a)]
    if instr.op == "edge_softmax":
        tensors = tensors[:1]
    rank = len(instr.shape)
    axes = flow.broadcast(tensors, rank)
    zero = [_zero_at(instr, tensors, axes, dim, zero_if) for dim in range(rank)]
    return Layout(tuple(axes), tuple(zero))


def _zero_at(
    instr: Instr, tensors: list[Layout], axes: list[Labels | None], dim: int, zero_if: str
) -> bool:
    if axes[dim] is None or zero_if == "never":
        return False
    rank = len(axes)
    zeros = []
    for tensor in tensors:
        own = dim - rank + len(tensor.axes)
        zeros.append(own >= 0 and tensor.axes[own] is not None and tensor.zero[own])
    other = instr.args.get("other", 0)
    match zero_if:
        case "any":
            return any(zeros)
        case "first":
            return zeros[0]
        case "all":
            # The condition of `where` chooses between the others and is no term itself.
            terms = zeros[1:] if instr.op == "aten.where.self" else zeros
            is_tensor = isinstance(other, Instr) and bool(other.shape)
            return all(terms) and (is_tensor or other == 0)
    raise AssertionError(zero_if)


def _declare_elementwise() -> None:
    for zero_if, ops in _ZERO_IF.items():
        rule(*ops)(partial(_elementwise, zero_if=zero_if))


_declare_elementwise()


@rule("aten.add.Scalar", "aten.sub.Scalar")
def _shift(flow: Flow, instr: Instr) -> Layout:
    return _elementwise(flow, instr, "first" if instr.args["other"] == 0 else "never")


@rule("aten.pow.Tensor_Scalar")
def _power(flow: Flow, instr: Instr) -> Layout:
    return _elementwise(flow, instr, "first" if instr.args["exponent"] > 0 else "never")


@rule("aten.clamp.default", "aten.clamp_min.default", "aten.clamp_max.default")
def _clamp(flow: Flow, instr: Instr) -> Layout:
    low, high = instr.args.get("min"), instr.args.get("max")
    if isinstance(low, Instr) or isinstance(high, Instr):
        raise Unfollowed("a clamp to sizes")
    return _clamped(flow, instr, low, high)


@rule("aten.hardtanh.default")
def _hardtanh(flow: Flow, instr: Instr) -> Layout:
    return _clamped(flow, instr, instr.args.get("min_val", -1), instr.args.get("max_val", 1))


def _clamped(flow: Flow, instr: Instr, low: float | None, high: float | None) -> Layout:
    inside = (low is None or low <= 0) and (high is None or high >= 0)
    return _elementwise(flow, instr, "first" if inside else "never")


@rule("aten.masked_fill.Scalar")
def _masked_fill(flow: Flow, instr: Instr) -> Layout:
    return _elementwise(flow, instr, "first" if instr.args["value"] == 0 else "never")


@rule("gather")
def _gather(flow: Flow, instr: Instr) -> Layout:
    x = flow.of(instr.arg)
    flow.freeze(x, [0], "its positions are read by index")
    return x.replace(0, None, False)


@rule("scatter")
def _scatter(flow: Flow, instr: Instr) -> Layout:
    messages = flow.of(instr.arg)
    flow.freeze(messages, [0], "its positions are reduced by index")
    # The product over no messages is 1.
    zero = tuple(z and instr.args["reduce"] != "mul" for z in messages.zero)
    return Layout((None, *messages.axes[1:]), (False, *zero[1:]))


@rule("aten.embedding.default")
def _embedding(flow: Flow, instr: Instr) -> Layout:
    table, index = flow.of(instr.arg), flow.of(instr.args["indices"])
    flow.freeze(table, [0], "rows of an embedding are read by index")
    return Layout((*index.axes, table.axes[1]), (*index.zero, table.zero[1]))


@rule("aten.linear.default")
def _linear(flow: Flow, instr: Instr) -> Layout:
    x, weight = flow.of(instr.arg), flow.of(instr.args["weight"])
    flow.contract(x, -1, weight, 1, "is summed over by a linear layer")
    zero = weight.zero[0]
    if instr.args["bias"] is not None:
        bias = flow.of(instr.args["bias"])
        if weight.axes[0] is not None and bias.axes[0] is not None:
            flow.channels.join(weight.axes[0], bias.axes[0])
        zero = zero and bias.zero[0]
    # What is zero along another axis is the bias behind the layer.
    others = [z and instr.args["bias"] is None for z in x.zero[:-1]]
    return Layout((*x.axes[:-1], weight.axes[0]), (*others, zero))


@rule("aten.mm.default", "aten.bmm.default", "aten.matmul.default")
def _matmul(flow: Flow, instr: Instr) -> Layout:
    left, right = (flow.of(a) for a in list(instr.args.values())[:2])
    return _product(flow, left, right)


@rule("aten.addmm.default")
def _addmm(flow: Flow, instr: Instr) -> Layout:
    bias = flow.of(instr.arg)
    product = _product(flow, flow.of(instr.args["mat1"]), flow.of(instr.args["mat2"]))
    axes = flow.broadcast([product, bias], 2)
    zero = product.zero[1] and bias.axes[-1] is not None and bias.zero[-1]
    return Layout(tuple(axes), (False, zero))


def _product(flow: Flow, left: Layout, right: Layout) -> Layout:
    rank = len(left.axes)
    if rank < 2 or rank != len(right.axes):
        raise Unfollowed("a matrix product of operands of different rank")
    flow.contract(left, -1, right, -2, "is summed over by a matrix product")
    batch = flow.broadcast([left.order(range(rank - 2)), right.order(range(rank - 2))], rank - 2)
    zero = [a or b for a, b in zip(left.zero[:-2], right.zero[:-2], strict=True)]
    return Layout((*batch, left.axes[-2], right.axes[-1]), (*zero, left.zero[-2], right.zero[-1]))


@rule("aten.sum.dim_IntList", "aten.sum.default", "aten.mean.dim", "aten.mean.default")
def _sum(flow: Flow, instr: Instr) -> Layout:
    # The removal pass scales means, which would otherwise divide by the smaller count.
    return reduced(flow, instr, zero_is_neutral=True)


@rule("aten.linalg_vector_norm.default")
def _vector_norm(flow: Flow, instr: Instr) -> Layout:
    return reduced(flow, instr, zero_is_neutral=instr.args["ord"] > 0)


@rule("aten.amax.default", "aten.amin.default", "aten.prod.dim_int",
      "aten.std.dim", "aten.std.correction", "aten.var.default", "aten.var.dim",
      "aten.var.correction", "aten.any.dim", "aten.all.dim")  # fmt: skip
def _reduce(flow: Flow, instr: Instr) -> Layout:
    return reduced(flow, instr, zero_is_neutral=False)


@rule("aten.max.dim", "aten.min.dim")
def _reduce_with_index(flow: Flow, instr: Instr) -> list[Layout]:
    values = reduced(flow, instr, zero_is_neutral=False)
    return [values, Layout(values.axes, (False,) * len(values.axes))]


def reduced(flow: Flow, instr: Instr, zero_is_neutral: bool) -> Layout:
    """The layout after reducing dimensions, whose channels stay unless zeros change nothing."""
    x = flow.of(instr.arg)
    dims = dims_of(instr.args.get("dim"), len(x.axes))
    name = instr.op.split(".")[1]
    if zero_is_neutral:
        flow.sums(x, dims, f"is reduced by {name}")
    else:
        flow.freeze(x, dims, f"is reduced by {name}, to which a zero is not nothing")
    if not instr.args.get("keepdim", False):
        return x.without(dims)
    for dim in dims:
        x = x.replace(dim, None, False)
    return x


@rule("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int",
      "aten._log_softmax.default", "aten.cumsum.default")  # fmt: skip
def _softmax(flow: Flow, instr: Instr) -> Layout:
    x = flow.of(instr.arg)
    dims = dims_of(instr.args["dim"], len(x.axes))
    flow.freeze(x, dims, f"every channel enters {instr.op.split('.')[1]}")
    return Layout(x.axes, (False,) * len(x.axes))
