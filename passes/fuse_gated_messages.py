"""Make gated messages where they are reduced, as those of CGConv and ResGatedGraphConv.

    v: f32[E, 8] = gather(linear(x, w1), dst) + gather(linear(x, w2), src) + linear(e, w3)
    g: f32[E, 8] = gather(linear(x, u1), dst) + gather(linear(x, u2), src) + linear(e, u3)
    m: f32[E, 8] = sigmoid(g) * softplus(v)
    y: f32[N, 8] = scatter(m, dst, n, 'sum')
  becomes
    i: f32[N, 16] = linear(x, [w1, u1])
    j: f32[N, 16] = linear(x, [w2, u2])
    y: f32[N, 8] = aggregate_messages(j, rowptr, src, perm, i, e, [w3, u3], None, 'softplus_glu')

where values and gates of a node or edge lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gnnfx.ir.patterns import is_feature, is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.fuse_messages import REDUCES, EdgeSum, insert_messages, terms_of
from gnnfx.policy import Policy

_SOFTPLUS = {"beta": 1, "threshold": 20}


@dataclass
class _Layers:
    """Linear layers on the same rows: those that values are the sum of, and those of gates."""

    values: list[Instr] = field(default_factory=list)
    gates: list[Instr] = field(default_factory=list)


@dataclass
class _Gated:
    """Layers on sources, on destinations and on edges, by what gathers their rows."""

    activation: str
    src: Instr | None = None
    layers: dict[Instr | None, _Layers] = field(default_factory=dict)


class FuseGatedMessages(Pass):
    """Replace scatters of values times sigmoid gates by `aggregate_messages`."""

    name = "fuse-gated-messages"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for scatter in rewriter.program.find("scatter"):
            messages, dst, _, reduce = scatter.args.values()
            if reduce not in REDUCES or sole_user(messages) is None or len(messages.shape) != 2:
                continue
            match _gated(messages, dst):
                case str(reason):
                    ctx.missed(scatter, reason)
                case _Gated() as found if (named := _told_apart(found, ctx.policy)) is not None:
                    ctx.missed(scatter, f"the policy tells {named} from the layers of its gates")
                case _Gated() as found:
                    rewriter.replace(scatter, _fused(rewriter, scatter, found))
                    ctx.did(scatter, "makes its gated messages while it reduces them")
        return rewriter.finish()


def _told_apart(found: _Gated, policy: Policy) -> str | None:
    """A layer that is to become one with others that the policy does not name alike, or None."""
    for layers in found.layers.values():
        first, *others = [layer.module for layer in layers.values + layers.gates]
        for other in others:
            if policy.patterns_of(other) != policy.patterns_of(first):
                return other
    return None


def _gated(messages: Instr, dst: Instr) -> _Gated | str | None:
    """What the messages are made of, why they cannot be fused, or None for others."""
    if messages.op != "aten.mul.Tensor" or messages.dtype is not torch.float32:
        return None
    left, right = messages.args["self"], messages.args["other"]
    for value, gate in ((left, right), (right, left)):
        if not isinstance(value, Instr) or not isinstance(gate, Instr):
            return None
        if gate.op == "aten.sigmoid.default" and value.shape == gate.shape == messages.shape:
            return _sorted(value, gate.arg, dst)
    return None


def _sorted(value: Instr, gate: Instr, dst: Instr) -> _Gated | str | None:
    found = _Gated("glu")
    if value.op == "aten.softplus.default":
        if {name: value.args[name] for name in _SOFTPLUS} != _SOFTPLUS:
            return None
        found, value = _Gated("softplus_glu"), value.arg
    for half, total in (("values", value), ("gates", gate)):
        for term in terms_of(total):
            layer, index = (term.arg, term.args["index"]) if term.op == "gather" else (term, None)
            if index not in (None, dst) and found.src not in (None, index):
                return "its gated messages read the rows of two indices"
            if index not in (None, dst):
                found.src = index
            if not _is_layer(layer) or layer.shape[1] != gate.shape[1]:
                return "the values and gates of its messages are not sums of linear layers"
            layers = found.layers.setdefault(index, _Layers())
            if any(other.arg != layer.arg for other in layers.values + layers.gates):
                return "the values and gates of its messages are layers of different rows"
            getattr(layers, half).append(layer)
    return None if found.src is None else found


def _is_layer(value: Instr) -> bool:
    """Whether `value` is a linear layer of two-dimensional rows with parameters."""
    if value.op != "aten.linear.default" or not is_feature(value) or len(value.shape) != 2:
        return False
    bias = value.args["bias"]
    return is_param(value.args["weight"]) and (bias is None or is_param(bias))


def _fused(rewriter: Rewriter, scatter: Instr, found: _Gated) -> Instr:
    dst, reduce = scatter.args["index"], scatter.args["reduce"]

    def joined(index: Instr | None) -> Instr | None:
        layers = found.layers.get(index)
        return None if layers is None else _joined(rewriter, scatter, layers)

    assert found.src is not None
    x = joined(found.src)
    assert x is not None
    messages = EdgeSum(x, found.src, joined(dst), joined(None), found.activation, 0.0, 0.0)
    return insert_messages(rewriter, scatter, messages, reduce)


def _joined(rewriter: Rewriter, place: Instr, layers: _Layers) -> Instr:
    """One layer [R, 2C] in place of several: the sums of the values' and of the gates' ones."""
    first = (layers.values + layers.gates)[0]
    halves = (layers.values, layers.gates)
    weight = torch.cat([_total(rewriter, half, first, "weight") for half in halves])
    bias = torch.cat([_total(rewriter, half, first, "bias") for half in halves])
    name = first.args["weight"].param
    args = [first.arg, rewriter.param(first, f"{name}.gated", weight)]
    if any(layer.args["bias"] is not None for half in halves for layer in half):
        args.append(rewriter.param(first, f"{name}.bias.gated", bias))
    return rewriter.insert(place, "aten.linear.default", *args, like=first)


def _total(rewriter: Rewriter, layers: list[Instr], like: Instr, name: str) -> Tensor:
    """The sum of a parameter of layers, in float32; zeros [O, K] or [O] of no layers."""
    weight = rewriter.program.tensor(like.args["weight"])
    total = torch.zeros_like(weight if name == "weight" else weight[:, 0], dtype=torch.float64)
    for layer in layers:
        if layer.args[name] is not None:
            total += rewriter.program.tensor(layer.args[name])
    return total.float()
