"""Which channels, heads or weights go: the least important share of each layer, or of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from gnnfx.errors import PolicyError
from gnnfx.ir.patterns import RESHAPES, is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.policy import Prune, matches
from gnnfx.pruning.criteria import Evidence, unit_scores, weight_scores
from gnnfx.pruning.groups import Group, Groups, Unit
from gnnfx.pruning.masks import Masks

_Item = TypeVar("_Item")
_MATRICES = {
    "aten.linear.default": ("weight",),
    "aten.mm.default": ("self", "mat2"),
    "aten.matmul.default": ("self", "other"),
    "aten.addmm.default": ("mat1", "mat2"),
    "aten.bmm.default": ("self", "mat2"),
    "aten.baddbmm.default": ("batch1", "batch2"),
}
_VIEWS = RESHAPES | {
    "aten.t.default",
    "aten.transpose.int",
    "aten.permute.default",
    "aten.expand.default",
    "aten.select.int",
    "aten.slice.Tensor",
}


def weight_matrices(program: Program) -> list[str]:
    """Names of the tensors that a program multiplies features with, biases excluded."""
    operands = [i.args[name] for i in program.find(*_MATRICES) for name in _MATRICES[i.op]]
    found = [base.param for base in map(_base, operands) if is_param(base)]
    return list(dict.fromkeys(found))


def _base(value: Instr) -> Instr:
    """What `value` is a view of."""
    return _base(value.arg) if value.op in _VIEWS else value


def select_units(
    groups: Groups, prune: Prune, evidence: Evidence, share: float = 1.0
) -> Iterator[tuple[Group, list[Unit] | str]]:
    """For each group the units that go, or why none does.

    share: how much of the ratio is due, for schedules.  One unit of a group always stays, unless
    the units are layers.
    """
    ratios = group_ratios(groups, prune)
    scored: dict[Group, Tensor] = {}
    for group in ratios:
        scores = group.kept or unit_scores(groups, group, prune, evidence)
        if isinstance(scores, str):
            yield group, scores
        else:
            _verify_numbers(scores, group.name)
            scored[group] = scores
    if prune.units == "layers":
        yield from _least_layers(scored, ratios, share)
        return
    # A group with a ratio of its own does not compete with the others.
    ranked = prune.method == "global-structured"
    pool = {g: s for g, s in scored.items() if ranked and ratios[g] == prune.ratio}
    yield from _least_of_all(pool, prune.ratio * share)
    for group, scores in scored.items():
        if group not in pool:
            count = min(count_of(ratios[group] * share, len(group.units)), len(group.units) - 1)
            least = torch.argsort(scores, stable=True)[:count].tolist()
            yield group, [group.units[i] for i in least]


def _least_layers(
    scored: Mapping[Group, Tensor], ratios: Mapping[Group, float], share: float
) -> Iterator[tuple[Group, list[Unit]]]:
    """The layers that score least; those with a ratio of their own do not compete with others."""
    for ratio in dict.fromkeys(ratios.values()):
        layers = [group for group in scored if ratios[group] == ratio]
        layers.sort(key=lambda group: float(scored[group]))
        gone = count_of(ratio * share, len(layers))
        for rank, group in enumerate(layers):
            yield group, list(group.units) if rank < gone else []


def _least_of_all(pool: Mapping[Group, Tensor], ratio: float) -> Iterator[tuple[Group, list[Unit]]]:
    """The share `ratio` of the units of all groups that scores least; the best of each stays.

    Scores are compared as multiples of their group's mean, as tensors of different sizes and
    numbers of coupled tensors have norms of different sizes (as Torch-Pruning does).
    """
    relative = {g: s / s.mean().clamp(min=1e-12) for g, s in pool.items()}
    ranked = [
        (score, number, unit)
        for number, (group, scores) in enumerate(relative.items())
        for unit, score in enumerate(scores.tolist())
        if unit != int(scores.argmax())
    ]
    count = count_of(ratio, sum(len(group.units) for group in pool))
    chosen = {(number, unit) for _, number, unit in sorted(ranked)[:count]}
    for number, group in enumerate(pool):
        yield group, [u for i, u in enumerate(group.units) if (number, i) in chosen]


def select_weights(names: list[str], prune: Prune, evidence: Evidence, share: float = 1.0) -> Masks:
    """Masks of the weight matrices `names` that are False on the weights that go."""
    ratios = weight_ratios(names, prune)
    scores = {name: weight_scores(name, prune, evidence) for name in names}
    for name in names:
        _verify_numbers(scores[name], name)
    if prune.method == "fine-grained":
        return {
            n: keep_largest(s, count_of(ratios[n] * share, s.numel())) for n, s in scores.items()
        }
    # A weight whose layer has a ratio of its own does not compete with the others.
    own = {n for n in names if ratios[n] != prune.ratio}
    masks = {
        n: keep_largest(scores[n], count_of(ratios[n] * share, scores[n].numel())) for n in own
    }
    rest = [n for n in names if n not in own]
    if rest:
        joined = torch.cat([_with_one_kept(scores[n]).flatten() for n in rest])
        kept = keep_largest(joined, count_of(prune.ratio * share, joined.numel()))
        parts = kept.split([scores[n].numel() for n in rest])
        masks |= {n: part.view_as(scores[n]) for n, part in zip(rest, parts, strict=True)}
    return masks


def _verify_numbers(scores: Tensor, name: str) -> None:
    """Raises PolicyError for scores that cannot be compared."""
    if bool(scores.isnan().any()):
        raise PolicyError(f"what is known of {name!r} or its gradient holds NaN; expected numbers")


def _with_one_kept(scores: Tensor) -> Tensor:
    """`scores` of a matrix of which the largest never goes: no layer is emptied."""
    kept = scores.flatten().clone()
    kept[kept.argmax()] = torch.inf
    return kept.view(scores.shape)


def group_ratios(groups: Groups, prune: Prune) -> dict[Group, float]:
    """The ratio of each group of the policy's kind; PolicyError for overrides without effect."""
    chosen = [group for group in groups if group.kind == prune.units]
    for pattern, ratio in prune.overrides.items():
        matched = [g for g in chosen if any(matches(pattern, name) for name in _makers(g))]
        if ratio > 0 and matched and all(group.kept is not None for group in matched):
            raise PolicyError(
                f"overrides: {pattern!r} matches only what stays: {matched[0].name} "
                f"{matched[0].kept}"
            )
    return _ratios({group: _makers(group) for group in chosen}, prune)


def weight_ratios(names: Iterable[str], prune: Prune) -> dict[str, float]:
    """The ratio of each weight matrix; PolicyError for overrides that match none."""
    matrices = {name: [name] for name in names}
    if not matrices:
        raise nothing_to_prune(["it multiplies features with no matrix of its own"], prune)
    return _ratios(matrices, prune)


def nothing_to_prune(reasons: Iterable[str], prune: Prune) -> PolicyError:
    """The error for a policy that would change nothing."""
    why = "; ".join(reasons) or f"it has no {prune.units} that could go at this ratio"
    return PolicyError(f"the policy would prune nothing in this model: {why}")


def chosen_units(found: Iterable[tuple[Group, list[Unit] | str]]) -> list[Unit]:
    """The units that go, of what `select_units` found."""
    return [unit for _, chosen in found if not isinstance(chosen, str) for unit in chosen]


def verify_effect(found: Sequence[tuple[Group, list[Unit] | str]], prune: Prune) -> None:
    """Raises PolicyError with the reasons if no unit goes though the policy wants some to."""
    if prune.ratio > 0 and not chosen_units(found):
        kept = [f"{group.name} {why}" for group, why in found if isinstance(why, str)]
        raise nothing_to_prune(kept, prune)


def keep_largest(scores: Tensor, drop: int) -> Tensor:
    """A mask of the shape of `scores` that is False on the `drop` smallest of them."""
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[torch.argsort(scores.flatten(), stable=True)[:drop]] = False
    return mask.view(scores.shape)


def count_of(ratio: float, total: int) -> int:
    """How many of `total` a ratio stands for."""
    # 0.3 * 10 is 2.999... in floating point.
    return int(ratio * total + 1e-6)


def _makers(group: Group) -> list[str]:
    """The tensors that make the channels of `group` rather than read them."""
    rows = [name for name, axis, _ in group.units[0].slices if axis == 0]
    return list(dict.fromkeys([group.name, *rows]))


def _ratios(tensors: dict[_Item, list[str]], prune: Prune) -> dict[_Item, float]:
    """The ratio of each item with the given tensors; every pattern must match one.

    Of patterns that match one tensor the last counts; through different tensors of what goes
    together they may not want different ratios.
    """
    ratios = dict.fromkeys(tensors, prune.ratio)
    known: dict[_Item, tuple[str, list[str]]] = {}
    for pattern, ratio in prune.overrides.items():
        matched = {i: [n for n in names if matches(pattern, n)] for i, names in tensors.items()}
        if not any(matched.values()):
            all_names = sorted({name for names in tensors.values() for name in names})
            raise PolicyError(f"overrides: {pattern!r} matches none of {all_names}")
        for item, hits in matched.items():
            other, others = known.get(item, (pattern, hits))
            if hits and ratios[item] != ratio and not set(hits) & set(others):
                raise PolicyError(
                    f"overrides: {other!r} wants {ratios[item]} of {others[0]!r}, {pattern!r} "
                    f"wants {ratio} of {hits[0]!r}, which loses the same channels; "
                    f"expected one ratio"
                )
            if hits:
                ratios[item], known[item] = ratio, (pattern, hits)
    return ratios
