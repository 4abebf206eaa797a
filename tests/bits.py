"""Equality to the last bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def same_bits(left: Any, right: Any) -> bool:
    """Whether two nested results have the same form, types and bits, NaN included."""
    leaves, spec = pytree.tree_flatten(left)
    others, other_spec = pytree.tree_flatten(right)
    return spec == other_spec and all(map(_same, leaves, others))


def _same(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor):
        return type(left) is type(right) and bool(left == right)
    if left.dtype != right.dtype or left.shape != right.shape or left.device != right.device:
        return False
    return torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
