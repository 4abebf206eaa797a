"""What follows a reduction in the same kernel, the same in every op that has one.

    y = S * multiplier [* row_scale[i]] [+ self_weight * x[i]] [+ bias[c]] [+ residual[i, c]]
    y = max(y, 0) if activation is "relu"; y where y > 0, else exp(y) - 1, if it is "elu"
    codes of y (`gnnfx.kernels.quantize`) if `out_scale` is given, else y

S is the exact result of an integer reduction rounded to float32, or a float one.  Scales are
multiplied with each other first, so S is multiplied once, by multiplier * row_scale[i].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.kernels.quantize import check_bits, code_dtype, pack, packed_channels, to_codes

ACTIVATIONS = ("none", "relu", "elu")  # device code knows them by their place
ACTIVATION_OPS = {"relu": "aten.relu.default", "elu": "aten.elu.default"}


def finish(
    total: Tensor,
    multiplier: Tensor | None,
    row_scale: Tensor | None,
    self_term: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """The rule above on S = `total` float32 [N, C]; `multiplier` is 0-d, [C] or [N, 1]."""
    if multiplier is not None and row_scale is not None:
        y = total * (multiplier * row_scale[:, None])
    elif multiplier is not None:
        y = total * multiplier
    else:
        y = total if row_scale is None else total * row_scale[:, None]
    for term in (self_term, bias, residual):
        y = y if term is None else y + term
    y = activate(y, activation)
    if out_scale is None:
        return y
    assert out_zero_point is not None
    return pack(to_codes(y, out_scale, out_zero_point, out_bits), out_bits)


def activate(y: Tensor, activation: str) -> Tensor:
    """The activation on its own."""
    if activation == "relu":
        return y.relu()
    return functional.elu(y) if activation == "elu" else y


def activate_in_place(y: Tensor, activation: str) -> Tensor:
    """The activation, written over what it is applied to."""
    if activation == "relu":
        return y.relu_()
    return functional.elu_(y) if activation == "elu" else y


def is_activated(*args: object) -> bool:
    """Whether an activation is among the arguments of an op."""
    return any(arg in ACTIVATION_OPS for arg in args if isinstance(arg, str))


def activation_gradient(grad: Tensor, y: Tensor | None, activation: str) -> Tensor:
    """The gradient towards what was activated, from that of the result `y`."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, y, 0)  # type: ignore[no-any-return]
    if activation == "elu":
        return torch.ops.aten.elu_backward(grad, 1, 1, 1, True, y)  # type: ignore[no-any-return]
    return grad


def check_epilogue(
    num_rows: int,
    channels: int,
    row_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> None:
    """Raise ValueError unless the operands fit a result [num_rows, channels]."""
    shapes = {
        "row_scale": (row_scale, (num_rows,)),
        "bias": (bias, (channels,)),
        "residual": (residual, (num_rows, channels)),
        "out_scale": (out_scale, ()),
    }
    for name, (operand, shape) in shapes.items():
        if operand is None:
            continue
        if operand.dtype != torch.float32 or tuple(operand.shape) != shape:
            got = f"{operand.dtype} {tuple(operand.shape)}"
            raise ValueError(f"{name} must be float32 {shape}, got {got}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if (out_scale is None) != (out_zero_point is None):
        raise ValueError("out_scale and out_zero_point must be given together")
    check_bits(out_bits)


def empty_result(
    like: Tensor, num_rows: int, channels: int, out_scale: Tensor | None, out_bits: int
) -> Tensor:
    """Memory for the result: float32 [num_rows, channels], or its codes."""
    if out_scale is None:
        return like.new_empty((num_rows, channels), dtype=torch.float32)
    shape = (num_rows, packed_channels(channels, out_bits))
    return like.new_empty(shape, dtype=code_dtype(out_bits))


def result_bytes(num_rows: int, channels: int, out_scale: Tensor | None, out_bits: int) -> int:
    """Bytes of the result."""
    return num_rows * (4 * channels if out_scale is None else packed_channels(channels, out_bits))
