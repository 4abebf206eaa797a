"""Linear layers of inputs that are mostly zeros, in training: bags of words cost what they hold.

    y = W dropout(x) + b = sum over the k with x[i, k] != 0 of dropout(x[i, k]) * W[:, k], plus b

is an `aggregate` of rows of the transposed weight, and dropout draws for values that are not zero
alone.  What an input holds is read from its values in every call.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.backend.training_ops import dropout, linear_relu
from gnnfx.ir.patterns import sole_user
from gnnfx.ir.program import Instr
from gnnfx.passes.select_sparse_linear import saves_time

Csr = tuple[Tensor, Tensor, Tensor]
# Dropout of a dense matrix takes far longer than either product.
_MOST_NONZERO_DROPPED = 0.15


def reads_nonzeros(instr: Instr | None, densities: dict[str, float]) -> bool:
    """Whether `instr` is a linear layer of an input, perhaps dropped, that is sparse enough."""
    if instr is None or instr.op != "aten.linear.default" or len(instr.shape) != 2:
        return False
    dropped = instr.arg.op == "dropout"
    x = instr.arg.arg if dropped else instr.arg
    if x.op != "input" or (dropped and sole_user(instr.arg) is None):
        return False
    density = densities.get(x.name, 1.0)
    if dropped and density <= _MOST_NONZERO_DROPPED:
        return True
    outputs, inputs = map(int, instr.args["weight"].shape)
    return saves_time(outputs, inputs, density)


def nonzeros(x: Tensor) -> Csr | None:
    """`x` [N, K] as CSR; None where a dense product does better or is needed."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
    if not plain or x.requires_grad or torch.is_autocast_enabled("cpu"):
        return None
    found: Csr = torch.ops.gnnfx.dense_to_csr(x)
    return found if 4 * len(found[2]) <= x.numel() else None


def linear_of_nonzeros(
    x: Tensor,
    csr: Csr | None,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    training: bool,
    activated: bool,
) -> Tensor:
    """linear(dropout(x, p, training), weight, bias), where `csr` holds the values of `x`.

    activated: whether a ReLU follows.
    """
    if csr is None:
        layer = linear_relu if activated else functional.linear
        return layer(dropout(x, p, training), weight, bias)
    rowptr, columns, values = csr
    values = dropout(values, p, training)
    rows = weight.t().contiguous()
    finish = {"bias": bias, "activation": "relu" if activated else "none"}
    out: Tensor = torch.ops.gnnfx.aggregate(rows, rowptr, columns, values, **finish)
    return out
