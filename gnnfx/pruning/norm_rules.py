"""How channels pass through norms: each scales its own channel, but many average over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.pruning.labels import Labels, Layout, Unfollowed
from gnnfx.pruning.rules import Flow, Layouts, reduced, rule

BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
INSTANCE_NORM = "aten.instance_norm.default"
STATISTICS = "running_mean", "running_var"


@rule(BATCH_NORM)
def _batch_norm(flow: Flow, instr: Instr) -> list[Layout]:
    x, args = flow.of(instr.arg), instr.args
    per_channel = [args[n] for n in ("weight", "bias", "running_mean", "running_var")]
    _join_channels(flow, x.axes[1], per_channel)
    flow.freeze(x, range(2, len(x.axes)), "is averaged by a batch norm")
    # A masked channel of a batch norm is one whose scale and shift are zero.
    return [x.replace(1, x.axes[1], _scaled_to_zero(flow, instr)), *[flow.fresh((0,), False)] * 2]


@rule(INSTANCE_NORM)
def _instance_norm(flow: Flow, instr: Instr) -> Layout:
    x, args = flow.of(instr.arg), instr.args
    per_channel = [args[n] for n in ("weight", "bias", "running_mean", "running_var")]
    _join_channels(flow, x.axes[1], per_channel)
    flow.freeze(x, range(2, len(x.axes)), "is averaged by an instance norm")
    # A channel of zeros has the mean zero, unless means are taken from what was seen before.
    own = args["use_input_stats"] and x.zero[1] and args["weight"] is args["bias"] is None
    return x.replace(1, x.axes[1], own or _scaled_to_zero(flow, instr))


@rule("aten.layer_norm.default", "aten.rms_norm.default", "aten.native_layer_norm.default")
def _layer_norm(flow: Flow, instr: Instr) -> Layouts:
    x, args = flow.of(instr.arg), instr.args
    last = len(x.axes) - 1
    if len(args["normalized_shape"]) != 1 or instr.op == "aten.native_layer_norm.default":
        raise Unfollowed("a layer norm over several axes")
    flow.sums(x, [last], "is averaged by a layer norm")
    if instr.op == "aten.rms_norm.default":
        _join_channels(flow, x.axes[last], [args["weight"]])
        return x
    _join_channels(flow, x.axes[last], [args["weight"], args["bias"]])
    # What is zero along another axis is the shift behind the norm.
    others = [z and args["bias"] is None for z in x.zero[:last]]
    return Layout(x.axes, (*others, _scaled_to_zero(flow, instr)))


@rule("aten.group_norm.default")
def _group_norm(flow: Flow, instr: Instr) -> Layout:
    # Groups of channels that lose unequal numbers would no longer be groups of one size.
    x, args = flow.of(instr.arg), instr.args
    reason = "is averaged by a group norm with the other channels of its group"
    flow.freeze(x, range(1, len(x.axes)), reason)
    _join_channels(flow, x.axes[1], [args["weight"], args["bias"]])
    return x.replace(1, x.axes[1], False)


@rule("aten.std.default")
def _std(flow: Flow, instr: Instr) -> Layouts:
    if (x := centered(instr)) is None:
        return reduced(flow, instr, zero_is_neutral=False)
    flow.sums(flow.of(x), range(len(x.shape)), "is averaged by a norm over the whole graph")
    return Layout((), ())


def centered(std: Instr) -> Instr | None:
    """The x of std(x - mean(x)) over all values, which a graph's layer norm divides by, or None.

    A removed channel of x is zero, so its share of the deviation is known: the squared mean.
    """
    difference = std.arg
    if std.args["unbiased"] or difference.op != "aten.sub.Tensor":
        return None
    x, mean = difference.args["self"], difference.args["other"]
    if not isinstance(x, Instr) or not isinstance(mean, Instr) or difference.args["alpha"] != 1:
        return None
    return x if mean.op == "aten.mean.default" and mean.arg == x else None


def _scaled_to_zero(flow: Flow, norm: Instr) -> bool:
    """Whether scale and shift are there, and zero where they are masked."""
    given = [norm.args[role] for role in ("weight", "bias")]
    return all(tensor is not None and flow.of(tensor).zero[0] for tensor in given)


def norm_tensors(program: Program, *roles: str) -> frozenset[str]:
    """Tensors that norms with running statistics use as one of `roles`."""
    operands = [
        norm.args[role] for norm in program.find(BATCH_NORM, INSTANCE_NORM) for role in roles
    ]
    return frozenset(operand.param for operand in operands if is_param(operand))


def _join_channels(flow: Flow, channels: Labels | None, tensors: Sequence[Any]) -> None:
    """Vectors with one value a channel, where they are given, go with the channels."""
    for tensor in tensors:
        labels = None if tensor is None else flow.of(tensor).axes[0]
        if channels is not None and labels is not None:
            flow.channels.join(channels, labels)
