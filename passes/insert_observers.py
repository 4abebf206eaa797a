"""Mark the values that integer kernels will read.

    y: f32[N, 8] = aten.linear.default(x, w)
    z: f32[N, 8] = aggregate(y, rowptr, src)
  becomes
    y: f32[N, 8] = aten.linear.default(observe(x, 'x'), w)
    z: f32[N, 8] = aggregate(observe(y, 'y'), rowptr, src)

A value that several instructions read is observed once, so that it gets one scale, with the most
bits that one of them wants.
"""

from __future__ import annotations

from typing import Any

from gnnfx.errors import PolicyError
from gnnfx.ir.patterns import is_feature, is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.ir.types import Domain
from gnnfx.pass_manager import Pass, PassContext
from gnnfx.passes.fold_attention_scores import head_scores
from gnnfx.passes.fuse_attention import match_attention
from gnnfx.passes.fuse_edge_mlp import edge_mlp
from gnnfx.policy import Policy, matches

_OPERANDS = {
    "aten.linear.default": ("input",),
    "aggregate": ("x",),
    "aggregate_many": ("x",),
    "aggregate_messages": ("x",),
    "attend_gat": ("x",),
    "attend_gatv2": ("x_src", "x_dst"),
    "attend_dot": ("key", "value"),
}
# Below this many outputs, turning a float input into codes moves more bytes than the integer
# product saves: 6 bytes a channel against 2 * outputs operations at a quarter of the float time.
_LEAST_OUTPUTS = 48
# Integer products work on blocks of 16 channels; of fewer, most of a block is padding.
_LEAST_INPUTS = 16


class InsertObservers(Pass):
    """Put `observe` in front of every layer and aggregate that will run on codes."""

    name = "insert-observers"
    needs = frozenset({"csr"})
    gives = frozenset({"observed"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        quantize = ctx.policy.quantize
        assert quantize is not None
        rewriter = Rewriter(program, self.name)
        layers = list(rewriter.program.find(*_OPERANDS))
        _verify_patterns(ctx.policy, list(rewriter.program.find(*_OPERANDS, "sparse_linear")))
        observed: dict[Instr, Instr] = {}
        for site in [i for i in layers if _quantizes(i, rewriter.program, ctx)]:
            bits = quantize.activation_bits_of(site.module)
            for reader, operand in _operands(site, rewriter.program):
                value = _observe(rewriter, reader.args[operand], observed, bits)
                rewriter.set_arg(reader, operand, value)
                _widen(rewriter, value, bits)
        return rewriter.finish()


def _verify_patterns(policy: Policy, layers: list[Instr]) -> None:
    """Every pattern of the policy must name a layer."""
    assert policy.quantize is not None
    modules = list(dict.fromkeys(i.module for i in layers))
    for field, patterns in (("skip", policy.skip), ("overrides", policy.quantize.overrides)):
        for pattern in patterns:
            if not any(matches(pattern, module) for module in modules):
                raise PolicyError(
                    f"{field}: pattern {pattern!r} matches no layer; expected one of {modules}"
                )


def _operands(site: Instr, program: Program) -> list[tuple[Instr, str]]:
    """The arguments that `site` reads codes from, with the instructions they belong to."""
    operands = [(site, operand) for operand in _OPERANDS[site.op]]
    match _attention(site, program):
        case ("attend_dot", (_, key, *_)):
            operands += [(gather, "x") for gather in key.users if gather.op == "gather"]
        case ("attend_gatv2", (x_src, x_dst, *_)):
            # In training, scores and sum are instructions of their own that share their codes.
            gathers = [u for x in (x_src, x_dst) for u in x.users if u.op == "gather"]
            operands += [(gather, "x") for gather in dict.fromkeys(gathers)]
        case ("attend_gat", (x, *scores, _, _, _, _)) if x.op == "aten.view.default":
            # Likewise: the scores are made of the rows that are summed.
            for score in scores:
                if (found := head_scores(score)) is not None and x.arg == found[0]:
                    rows = next(n for n, v in score.arg.args.items() if v != found[1])
                    operands.append((score.arg, rows))
    return operands


def _attention(aggregate: Instr, program: Program) -> tuple[str, tuple[Any, ...]] | str | None:
    """The attention op that an aggregate per head is a part of, why it is none, or None."""
    if aggregate.op != "aggregate":
        return None
    weight = aggregate.args["weight"]
    while weight is not None and weight.op == "dropout":
        weight = weight.arg
    known = weight is not None and weight.op == "segment_softmax"
    if len(aggregate.shape) != 3:
        # One head without an axis of its own, or else a weighted sum like any other.
        found = match_attention(aggregate, weight.arg, program) if known else None
        return None if isinstance(found, str) else found
    if not known:
        return "messages have heads, and their weights are no softmax of a known score"
    return match_attention(aggregate, weight.arg, program)


def _quantizes(site: Instr, program: Program, ctx: PassContext) -> bool:
    reason = _skipped(site, ctx) or _refusal(site, program) or _slow(site, ctx)
    if reason is not None:
        ctx.missed(site, f"left in float32: {reason}")
    return reason is None and ctx.allows(site)


def _skipped(site: Instr, ctx: PassContext) -> str | None:
    pattern = ctx.policy.skipped_by(site.module)
    return f"skipped by the policy's pattern {pattern!r}" if pattern is not None else None


def _refusal(site: Instr, program: Program) -> str | None:
    value = site.args[_OPERANDS[site.op][0]]
    if not is_feature(value):
        return "its input does not carry features"
    if site.op == "aggregate":
        if edge_mlp(site) is not None:
            return "it reduces what a linear layer makes of each edge, in tiles that stay float"
        if isinstance(reason := _attention(site, program), str):
            return reason
        weighted = len(site.shape) == 2 and site.args["weight"] is not None
        if weighted and site.args["reduce"] not in ("sum", "mean"):
            return f"a weighted {site.args['reduce']} does not run on codes"
    if site.op == "aten.linear.default" and not (
        is_param(site.args["weight"]) and len(site.shape) == 2
    ):
        return "its weight is not a parameter, or its input is not a matrix"
    return None


def _slow(site: Instr, ctx: PassContext) -> str | None:
    """Why integers would take longer, unless the policy wants them in any case."""
    quantize = ctx.policy.quantize
    if quantize is not None and quantize.layers == "all":
        return None
    if site.op == "aggregate" and _pools(site):
        return "it reads each row once, which takes no longer than making codes of it"
    if site.op != "aten.linear.default":
        return None
    value = site.arg
    outputs, inputs = site.args["weight"].shape
    if inputs < _LEAST_INPUTS:
        return f"{inputs} input channels are too few for integer products to be faster"
    coded = any(u.op in _OPERANDS and u.op != "aten.linear.default" for u in value.users)
    if value.op == "input" and not coded and outputs < _LEAST_OUTPUTS:
        return (
            f"its float input must be read anyway, and {outputs} outputs are too few to win "
            f"back the time that making codes of it would take"
        )
    return None


def _pools(site: Instr) -> bool:
    """Whether a sum reads each row once, in order: that of the nodes of a graph in a batch."""
    x, src = site.args["x"], site.args["src"]
    permuted = src.op == "getitem" and src.arg.op == "compress" and src.positional[1] == 2
    return permuted and x.domain is not Domain.EDGE


def _observe(rewriter: Rewriter, value: Instr, observed: dict[Instr, Instr], bits: int) -> Instr:
    """The observed form of `value`; reshapes and dropout stay behind the observer.

    Dropout scales what it keeps, and would widen the range to values that eval mode never has.
    """
    if value in observed:
        return observed[value]
    after = Instr(value.node.next)
    while after.op in ("input", "param"):
        after = Instr(after.node.next)
    if value.op == "dropout" and all(u.op in _OPERANDS for u in value.users):
        inner = _observe(rewriter, value.arg, observed, bits)
        observed[value] = rewriter.insert(after, "dropout", inner, value.args["p"], like=value)
        return observed[value]
    if value.op == "aten.view.default" and len(value.arg.shape) == 2:
        inner = _observe(rewriter, value.arg, observed, bits)
        size = value.args["size"]
        observed[value] = rewriter.insert(after, "aten.view.default", inner, size, like=value)
    else:
        observe = rewriter.insert(after, "observe", value, value.name, bits=bits, like=value)
        observed[value] = observe
    return observed[value]


def _widen(rewriter: Rewriter, value: Instr, bits: int) -> None:
    """Let the observer that `value` comes from have at least `bits` bits."""
    while value.op != "observe":
        value = value.arg
    if value.args["bits"] < bits:
        rewriter.set_arg(value, "bits", bits)
