"""Masks: which values of each tensor stay while channels are only zeroed, not yet removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gnnfx.pruning.groups import Group, Groups, Unit

Masks = dict[str, Tensor]


def unit_masks(groups: Groups, units: Iterable[Unit], tensors: Mapping[str, Tensor]) -> Masks:
    """Masks that are False on the slices of `units`; running statistics are never masked."""
    masks: Masks = {}
    for unit in units:
        for name, axis, positions in unit.slices:
            if name in groups.statistics:
                continue
            tensor = tensors[name]
            if name not in masks:
                masks[name] = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
            masks[name].index_fill_(axis, torch.tensor(positions, device=tensor.device), False)
    return masks


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """`tensor` with zeros where `mask` is False; a product would leave negative zeros there."""
    return tensor.masked_fill(~mask, 0.0)


def keeper_of_zeros(tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """A function that sets to zero in `tensors`, in place, what is zero now: for training on."""
    gone = {name: tensor.detach() == 0 for name, tensor in tensors.items()}

    def keep() -> None:
        with torch.no_grad():
            for name, mask in gone.items():
                tensors[name].masked_fill_(mask, 0.0)

    return keep


def zero_units(groups: Groups, tensors: Mapping[str, Tensor]) -> dict[Group, list[Unit]]:
    """The units of each group that can be removed whose weights are all zero.

    One unit of each group stays in any case.
    """
    found: dict[Group, list[Unit]] = {}
    for group in groups.removable():
        zero = [u for u in group.units if _is_zero(groups, u, tensors)]
        if len(zero) == len(group.units):
            zero = zero[1:]
        if zero:
            found[group] = zero
    return found


def _is_zero(groups: Groups, unit: Unit, tensors: Mapping[str, Tensor]) -> bool:
    return not any(
        bool(slice_of(tensors[name], axis, positions).any())
        for name, axis, positions in unit.slices
        if name not in groups.statistics
    )


def slice_of(tensor: Tensor, axis: int, positions: Sequence[int]) -> Tensor:
    """The `positions` of `tensor` along `axis`."""
    return tensor.index_select(axis, torch.tensor(positions, device=tensor.device))


def sliced(tensor: Tensor, masks: Sequence[Sequence[bool] | None]) -> Tensor:
    """`tensor` without the positions that the mask of each axis (None: none) leaves out."""
    for axis, mask in enumerate(masks):
        if mask is not None:
            tensor = slice_of(tensor, axis, [i for i, stays in enumerate(mask) if stays])
    return tensor
