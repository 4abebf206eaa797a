"""linear: a float32 linear layer with its bias, residual and ReLU in one pass over the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.ir.op import Cost, Impl, OpDef, register
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.epilogue import (
    ACTIVATIONS,
    activate,
    activate_in_place,
    activation_gradient,
    is_activated,
)
from gnnfx.kernels.launch import numba_impl
from gnnfx.kernels.memory import empty

_LARGE, _BLOCK = 2**23, 2**20  # values; smaller results come from memory used before, anyway
# Multiply-adds that take no longer than a kernel takes to be set up; a bias or an activation in the
# same pass is worth some more of them, and the reference does not do well with few outputs.
_SMALL, _SMALL_IF_PLAIN, _FEW_OUTPUTS = 2**19, 2**23, 15


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """act(x [N, K] @ weight [O, K].T + bias [O] + residual [N, O])."""
    y = functional.linear(x, weight, bias)
    if residual is not None:
        y = y + residual
    return activate(y, activation)


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    if x.dim() != 2 or weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"x must be [N, K] and weight [O, K], got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    return x.new_empty((x.shape[0], weight.shape[0]))


def cost(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Cost:
    """A multiply-add for each row, input and output channel; everything moves once."""
    outputs = x.shape[0] * weight.shape[0]
    read = num_bytes(x, weight, bias, residual)
    return Cost(2 * outputs * x.shape[1], read + 4 * outputs)


def gradient(
    grad: Tensor,
    result: Tensor | None,
    needed: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor | None, ...]:
    """The layer is not computed again to know where its activation let values pass."""
    grad = activation_gradient(grad, result, activation)
    to_x = grad @ weight if needed[0] else None
    to_weight = grad.t() @ x if needed[1] else None
    return to_x, to_weight, grad.sum(0) if needed[2] else None, grad if needed[3] else None, None


def samples(device: str = "cpu") -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(9)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    shapes = [(7, 16, 5), (1, 1, 1), (0, 8, 4), (70, 33, 40), (350, 33, 50), (9000, 4, 15)]
    shapes += [(1, 900, 600), (260, 130, 16), (4003, 40, 64), (3000, 33, 96)]
    for rows, inputs, outputs in shapes:
        x, weight = rand(rows, inputs), rand(outputs, inputs)
        yield x, weight
        yield x, weight, rand(outputs), None, "relu"
        yield x, weight, rand(outputs), rand(rows, outputs), "relu"
        yield x, weight, None, rand(rows, outputs)
        yield x, weight, rand(outputs), None, "elu"


def is_small(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> bool:
    """Whether the reference takes least."""
    plain = bias is None and activation == "none" and weight.shape[0] > _FEW_OUTPUTS
    most = _SMALL_IF_PLAIN if plain else _SMALL
    return x.numel() * weight.shape[0] < most


def onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The reference through oneDNN, which finishes each tile while it is in the cache.

    oneDNN writes to memory of its own, so a large result is made some rows at a time, and these
    are moved, still in the cache, to memory that was used before.
    """
    rows, outputs = x.shape[0], weight.shape[0]
    if rows * outputs < _LARGE:
        return _rows(x, weight, bias, residual, activation)
    out = empty((rows, outputs))
    for first in range(0, rows, size := max(_BLOCK // outputs, 1)):
        part = slice(first, first + size)
        below = None if residual is None else residual[part]
        out[part] = _rows(x[part], weight, bias, below, activation)
    return out


def _rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    # Overloads by name: a call that torch must find one for prints all arguments on the way.
    product = torch.ops.mkldnn._linear_pointwise
    if residual is None and activation != "elu":
        return product.default(x, weight, bias, activation, [], "")  # type: ignore[no-any-return]
    y: Tensor
    if residual is None:
        y = product.default(x, weight, bias, "none", [], "")
    else:
        y = product.binary(x, residual, weight, bias, "add")
    return activate_in_place(y, activation)


def reject_onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    """Why oneDNN cannot take these arguments, or None."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return "this torch was built without oneDNN"
    if x.dtype != torch.float32:
        return f"x must be float32, got {x.dtype}"
    if is_small(x, weight, bias, activation):
        return "the product is done sooner than oneDNN is set up"
    return None


LINEAR = register(
    OpDef(
        "linear",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.float_linear_numba", "tiles"),
            Impl("onednn", "cpu", onednn, reject_onednn),
        ),
        differentiable=True,
        gradient=gradient,
        reads_result=is_activated,
    )
)
