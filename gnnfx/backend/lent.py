"""ATen ops that write large results into the buffers of a module's last call, as gnnfx's ops do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnnfx.kernels.memory import empty

_LARGE = 2**20  # values; below, the allocator has memory at hand that was used before
_aten = torch.ops.aten
_POINTWISE = {
    _aten.add.Tensor,
    _aten.addcmul.default,
    _aten.clamp.default,
    _aten.cos.default,
    _aten.div.Tensor,
    _aten.elu.default,
    _aten.exp.default,
    _aten.gelu.default,
    _aten.leaky_relu.default,
    _aten.log.default,
    _aten.maximum.default,
    _aten.minimum.default,
    _aten.mul.Tensor,
    _aten.neg.default,
    _aten.relu.default,
    _aten.sigmoid.default,
    _aten.silu.default,
    _aten.softplus.default,
    _aten.sqrt.default,
    _aten.sub.Tensor,
    _aten.tanh.default,
}


def lent_form(op: Any) -> Any:
    """`op` with large float32 results on the CPU in lent memory, where it is known; or `op`."""
    if op is _aten.cat.default:
        return _cat
    return _pointwise(op) if op in _POINTWISE else op


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    small = sum(map(Tensor.numel, tensors)) < _LARGE
    if small or not all(map(_is_plain, tensors)) or any(t.dim() != first.dim() for t in tensors):
        return torch.cat(tensors, dim)
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return torch.cat(tensors, dim, out=empty(tuple(shape)))


def _pointwise(op: torch._ops.OpOverload[..., Any]) -> Callable[..., Tensor]:
    write = op.overloadpacket.out

    def run(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [a for a in args if isinstance(a, Tensor)]
        widest = next((t for t in tensors if t.numel() >= _LARGE), None)
        if widest is None or not all(
            _is_plain(t) and (t is widest or _repeats(t.shape, widest.shape)) for t in tensors
        ):
            return op(*args, **kwargs)  # type: ignore[no-any-return]
        return write(*args, **kwargs, out=empty(widest.shape))  # type: ignore[no-any-return]

    return run


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous()


def _repeats(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether a tensor of this shape is repeated along others to be as large as `whole`."""
    sizes = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(n in (1, size) for n, size in sizes)
