"""What a training graph calls where torch has no function of that form, or only several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.passes.fold_batch_norm import scale_and_shift


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(linear(x, weight, bias)), written once where the op takes it.

    The op knows neither mixed precision nor inputs of more dimensions.
    """
    if x.dim() != 2 or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, weight, bias).relu()
    y: Tensor = torch.ops.gnnfx.linear(x, weight, bias, None, "relu")
    return y


class _Gather(torch.autograd.Function):
    """Keeps the index alone, where an op of ours would keep the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        (index,) = ctx.saved_tensors
        plain = grad.device.type == "cpu" and grad.dtype == torch.float32
        if not plain or max(len(index), ctx.rows) >= 2**31 - 1:
            return grad.new_zeros((ctx.rows, *grad.shape[1:])).index_add(0, index, grad), None
        # Each edge is a destination of its own.
        rowptr = torch.arange(len(index) + 1, dtype=torch.int32, device=index.device)
        edges = grad.contiguous(), rowptr, index.int(), ctx.rows
        return torch.ops.gnnfx.aggregate_transposed(*edges), None


def gather(x: Tensor, index: Tensor) -> Tensor:
    """The rows of `x` that `index` names; their gradients are summed by several threads."""
    y: Tensor = _Gather.apply(x, index)  # type: ignore[no-untyped-call]
    return y


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """As torch's, which draws a value after the other on a CPU; the seed is of its generator."""
    if not training or p == 0 or x.device.type != "cpu" or x.dtype != torch.float32:
        return functional.dropout(x, p, training)
    seed = torch.randint(torch.iinfo(torch.int64).max, ())
    y: Tensor = torch.ops.gnnfx.seeded_dropout(x.contiguous(), p, seed)
    return y


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    tracked: Tensor | None,
    momentum: float,
    eps: float,
    training: bool,
) -> Tensor:
    """Batch norm of `x` [N, C, ...]; in eval mode as the one multiply-add that it converts to.

    A momentum of 0 stands for the cumulative average, as torch passes on what was None.
    """
    if training:
        if tracked is not None:
            tracked.add_(1)
        factor = momentum or 1.0 / float(tracked if tracked is not None else 1)
        return functional.batch_norm(x, mean, var, weight, bias, True, factor, eps)
    scale, shift = scale_and_shift(mean, var, weight, bias, eps)
    shape = (-1, *(1,) * (x.dim() - 2))
    return x * scale.to(x.dtype).view(shape) + shift.to(x.dtype).view(shape)
