"""Remove channels and heads whose weights are all zero, and shrink everything they pass through.

    w: f32[4, 20] = param('w')            # rows 1 and 3 are zero, as are entries 1 and 3 of b
    h: f32[N, 4] = aten.linear.default(x, w, b)
    g: f32[N, 2, 2] = aten.view.default(h, [-1, 2, 2])
  becomes
    w: f32[2, 20] = param('w')
    h: f32[N, 2] = aten.linear.default(x, w, b)
    g: f32[N, 2, 1] = aten.view.default(h, [-1, 2, 1])

Results stay the same: what is averaged over channels still counts the removed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.pruning.groups import Groups, find_groups, value_key
from gnnfx.pruning.masks import sliced, zero_units
from gnnfx.pruning.norm_rewrites import NORMS
from gnnfx.pruning.shape_rules import split_sizes

_SIZES = {
    "aten.view.default": "size",
    "aten.reshape.default": "shape",
    "aten._unsafe_view.default": "size",
    "aten.expand.default": "size",
    "aten.zeros.default": "size",
    "aten.new_zeros.default": "size",
    "aten.ones.default": "size",
    "aten.new_ones.default": "size",
    "aten.full.default": "size",
    "aten.new_full.default": "size",
    "aten.empty.memory_format": "size",
    "aten.new_empty.default": "size",
}


class PruneChannels(Pass):
    """Make every tensor as narrow as the channels that still do something."""

    name = "prune-channels"
    needs = frozenset({"canonical", "raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        groups = find_groups(program)
        dead = zero_units(groups, program.tensors)
        gone = groups.removed_with({unit.label for units in dead.values() for unit in units})
        rewriter = Rewriter(program, self.name)
        alive = _Alive(groups, gone)
        params = {i.param: i for i in rewriter.program.instrs if i.op == "param"}
        for instr in rewriter.program.instrs:
            _shrink(rewriter, alive, instr)
        for group, units in dead.items():
            total, user = len(group.units), params[group.name].users[0]
            ctx.did(user, f"{len(units)} of {total} {group.kind} removed")
        return rewriter.finish()


class _Alive:
    """Which positions along each axis stay."""

    def __init__(self, groups: Groups, gone: set[int]) -> None:
        self._values = dict(groups.values)
        self._gone = gone

    def replaced(self, old: Instr, new: Instr) -> None:
        """Remember that `new` has the channels of `old`."""
        self._values[value_key(new)] = self._values[value_key(old)]

    def __call__(self, instr: Instr, dim: int) -> list[bool] | None:
        """One truth value a channel; None where no channel goes."""
        axes = self._values.get(value_key(instr), ())
        labels = axes[dim] if axes else None
        if labels is None or self._gone.isdisjoint(labels):
            return None
        return [label not in self._gone for label in labels]


def _shrink(rewriter: Rewriter, alive: _Alive, instr: Instr) -> None:
    """Adapt one instruction to operands that lose channels."""
    args = instr.args if instr.op.startswith("aten.") else {}
    if instr.op == "param":
        masks = [alive(instr, dim) for dim in range(len(instr.shape))]
        if any(masks):
            rewriter.set_tensor(instr, sliced(rewriter.program.tensor(instr), masks))
    elif (name := _SIZES.get(instr.op)) is not None:
        masks = [alive(instr, dim) for dim in range(len(instr.shape))]
        if any(masks):
            sizes = [s if m is None else sum(m) for s, m in zip(args[name], masks, strict=True)]
            rewriter.set_arg(instr, name, sizes)
    elif instr.op == "aten.slice.Tensor":
        if mask := alive(instr.arg, args["dim"]):
            start, end, _ = slice(args["start"], args["end"]).indices(len(mask))
            rewriter.set_arg(instr, "start", sum(mask[:start]))
            rewriter.set_arg(instr, "end", sum(mask[:end]))
    elif instr.op == "aten.select.int":
        if mask := alive(instr.arg, args["dim"]):
            rewriter.set_arg(instr, "index", sum(mask[: args["index"] % len(mask)]))
    elif instr.op in ("aten.split_with_sizes.default", "aten.split.Tensor"):
        if mask := alive(instr.arg, args["dim"]):
            sizes = split_sizes(instr)
            ends = list(accumulate(sizes))
            kept = [sum(mask[e - s : e]) for s, e in zip(sizes, ends, strict=True)]
            operands = (instr.arg, sizes, args["dim"])
            split = rewriter.insert(instr, "aten.split_with_sizes.default", *operands)
            rewriter.set_arg(split, "split_sizes", kept)
            rewriter.replace(instr, split)
    elif instr.op in ("aten.mean.dim", "aten.mean.default"):
        dims = args.get("dim") or range(len(instr.arg.shape))
        if (share := _share(alive, instr.arg, dims)) != 1.0:
            after = Instr(instr.node.next)
            scaled = rewriter.insert(after, "aten.mul.Tensor", instr, share, like=instr)
            alive.replaced(instr, scaled)
            rewriter.replace(instr, scaled)
    elif (rewrite := NORMS.get(instr.op)) is not None:
        whole = instr.op == "aten.std.default"
        dims = range(len(instr.arg.shape)) if whole else [-1]
        if (share := _share(alive, instr.arg, dims)) != 1.0:
            rewritten = rewrite(rewriter, instr, share)
            alive.replaced(instr, rewritten)
            rewriter.replace(instr, rewritten)


def _share(alive: _Alive, value: Instr, dims: Iterable[int]) -> float:
    """How much of what is averaged over `dims` is left."""
    share = 1.0
    for dim in dims:
        if mask := alive(value, dim):
            share *= sum(mask) / len(mask)
    return share
