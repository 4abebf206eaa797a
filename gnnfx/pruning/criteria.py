"""How much a channel, a head or a single weight matters: larger scores stay longer.

Norms after Li et al., "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710), summed over
coupled tensors as Fang et al., "DepGraph" (arXiv:2301.12900) do; Taylor scores after Molchanov et
al. (arXiv:1906.10771); scales of batch norms after Liu et al., "Network Slimming"
(arXiv:1708.06519).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gnnfx.errors import PolicyError
from gnnfx.policy import Prune
from gnnfx.pruning.groups import Group, Groups
from gnnfx.pruning.masks import slice_of


@dataclass(frozen=True)
class Evidence:
    """What criteria look at.

    tensors, gradients: of the model, by name.
    passed_on: norm of what aggregation passes on of a channel, by label.
    generator: numbers for the criterion 'random'.
    """

    tensors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    passed_on: Mapping[int, float] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)


def unit_scores(groups: Groups, group: Group, prune: Prune, evidence: Evidence) -> Tensor | str:
    """One score a unit of `group` [units], or why the criterion cannot tell them apart."""
    match prune.criterion:
        case "random":
            return torch.rand(len(group.units), generator=evidence.generator)
        case "aggregation":
            found = [evidence.passed_on.get(u.label) for u in group.units]
            if any(score is None for score in found):
                return "nothing that is aggregated depends on it channel by channel"
            return torch.tensor(found, dtype=torch.float32)
        case "batch-norm":
            scales = [t for t in group.tensors if t in groups.norm_scales]
            if not scales:
                return "no batch norm scales its channels"
            return _totals(groups, group, {t: evidence.tensors[t].abs() for t in scales})
    weights = {t: evidence.tensors[t] for t in group.tensors if t not in groups.statistics}
    if prune.criterion == "taylor":
        # Frozen weights and constants go with those that are trained.
        known = [t for t in weights if t in evidence.gradients] or list(weights)
        weights = {t: taylor(t, evidence).abs() for t in known}
    return _totals(groups, group, weights, power=2 if prune.criterion == "l2" else 1)


def weight_scores(name: str, prune: Prune, evidence: Evidence) -> Tensor:
    """One score a value of the tensor `name`."""
    tensor = evidence.tensors[name]
    match prune.criterion:
        case "taylor":
            return taylor(name, evidence).abs()
        case "random":
            drawn = torch.rand(tensor.shape, generator=evidence.generator)
            return drawn.to(tensor.device)
    return tensor.abs()


def taylor(name: str, evidence: Evidence) -> Tensor:
    """Gradient times weight: what the loss would change by, to first order, without it."""
    if (gradient := evidence.gradients.get(name)) is None:
        raise PolicyError(
            f"criterion 'taylor' needs the gradient of {name!r}, which has none; "
            f"call loss.backward() before pruning"
        )
    return evidence.tensors[name].detach() * gradient


def _totals(groups: Groups, group: Group, weights: Mapping[str, Tensor], power: int = 1) -> Tensor:
    """The sum over tensors of the norm of each unit's slice [units]."""
    totals = []
    for unit in group.units:
        total = 0.0
        for name, axis, positions in unit.slices:
            if name in weights:
                part = slice_of(weights[name].detach(), axis, positions).abs() ** power
                total += float(part.sum()) ** (1 / power)
        totals.append(total)
    return torch.tensor(totals)


def group_lasso(groups: Groups, kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of the Euclidean norms of all units of a kind that can be removed: a penalty.

    It drives whole units to zero rather than single weights; differentiable in `tensors`.
    """
    norms = []
    for group in (g for g in groups.removable() if g.kind == kind):
        for unit in group.units:
            parts = [
                slice_of(tensors[name], axis, positions).flatten()
                for name, axis, positions in unit.slices
                if name not in groups.statistics
            ]
            norms.append(torch.linalg.vector_norm(torch.cat(parts)))
    return torch.stack(norms).sum() if norms else torch.zeros(())
