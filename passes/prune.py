"""Set the weights to zero that matter least: channels, heads, or single weights.

    w: f32[4, 20] = param('w')
  becomes
    w: f32[4, 20] = param('w')            # rows 1 and 3 are zero

together with everything else that belongs to channels 1 and 3.  Nothing gets smaller here:
`prune-channels` removes what is zero throughout.
"""

from __future__ import annotations

import torch

from gnnfx.errors import PolicyError
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.policy import Prune as PrunePolicy
from gnnfx.pruning.aggregation import passed_on
from gnnfx.pruning.criteria import Evidence
from gnnfx.pruning.follow import INPUT
from gnnfx.pruning.groups import OUTPUT, Groups, find_groups
from gnnfx.pruning.masks import Masks, masked, unit_masks
from gnnfx.pruning.select import (
    chosen_units,
    select_units,
    select_weights,
    verify_effect,
    weight_matrices,
)
from gnnfx.pruning.storage import zeros_remark


class Prune(Pass):
    """Choose what goes and mask it; raises PolicyError if the policy would prune nothing."""

    name = "prune"
    needs = frozenset({"canonical", "raised"})
    numerics = Numerics.LOSSY

    def run(self, program: Program, ctx: PassContext) -> Program:
        policy = ctx.policy.prune
        assert policy is not None
        params = {i.param: i for i in program.instrs if i.op == "param"}
        if policy.removes:
            masks = _mask_units(program, policy, ctx, params)
        else:
            masks = select_weights(
                weight_matrices(program), policy, _evidence(program, policy, ctx)
            )
            for name, mask in masks.items():
                left = masked(program.tensors[name], mask)
                ctx.did(params[name].users[0], zeros_remark(name, left))
        rewriter = Rewriter(program, self.name)
        for instr in rewriter.program.instrs:
            if instr.op == "param" and instr.param in masks:
                kept = masked(program.tensor(instr), masks[instr.param])
                rewriter.set_tensor(instr, kept)
        ctx.masks |= masks
        return rewriter.finish()


def _mask_units(
    program: Program, policy: PrunePolicy, ctx: PassContext, params: dict[str, Instr]
) -> Masks:
    groups = find_groups(program)
    found = list(select_units(groups, policy, _evidence(program, policy, ctx, groups)))
    for group, chosen in found:
        if isinstance(chosen, str) and chosen not in (INPUT, OUTPUT):
            ctx.missed(params[group.name].users[0], f"{group.kind} of {group.name}: {chosen}")
    verify_effect(found, policy)
    return unit_masks(groups, chosen_units(found), program.tensors)


def _evidence(
    program: Program, policy: PrunePolicy, ctx: PassContext, groups: Groups | None = None
) -> Evidence:
    measured: dict[int, float] = {}
    if policy.criterion == "aggregation" and groups is not None:
        if ctx.example is None:
            raise PolicyError(
                "criterion 'aggregation' needs example_inputs with a graph to measure"
            )
        measured = passed_on(program, groups, ctx.example)
    generator = torch.Generator().manual_seed(policy.seed)
    return Evidence(program.tensors, ctx.gradients, measured, generator)
