"""What a training graph calls where torch has no function of that form, or only several."""

from __future__ import annotations

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
