"""Linear layers of inputs that are mostly zeros, in training: bags of words cost what they hold.

    y = W dropout(x) + b = sum over the k with x[i, k] != 0 of dropout(x[i, k]) * W[:, k], plus b

is an `aggregate` of rows of the transposed weight, and only values that are not zero are dropped
and rounded: a zero stays one.  What an input holds is read from its values in every call.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.backend.training_ops import dropout, linear_relu
from gnnfx.fake_quantize import FakeQuantizer
from gnnfx.ir.patterns import sole_user
from gnnfx.ir.program import Instr
from gnnfx.passes.select_sparse_linear import saves_time

Csr = tuple[Tensor, Tensor, Tensor]
# Dropout of a dense matrix takes far longer than either product.
_MOST_NONZERO_DROPPED = 0.15


def reads_nonzeros(instr: Instr | None, densities: dict[str, float]) -> bool:
    """Whether `instr` is a linear layer of an input that is sparse enough.

    Nothing but dropout and a quantizer without degrees may be between them.
    """
    if instr is None or instr.op != "aten.linear.default" or len(instr.shape) != 2:
        return False
    between, x = before(instr)
    if x.op != "input" or any(sole_user(i) is None for i in between.values()):
        return False
    if "observe" in between and between["observe"].args["bucket"] is not None:
        return False
    density = densities.get(x.name, 1.0)
    if "dropout" in between and density <= _MOST_NONZERO_DROPPED:
        return True
    outputs, inputs = map(int, instr.args["weight"].shape)
    return saves_time(outputs, inputs, density)


def before(linear: Instr) -> tuple[dict[str, Instr], Instr]:
    """The dropout and the quantizer in front of a linear layer, by op, and what they are given."""
    between: dict[str, Instr] = {}
    value = linear.arg
    while value.op in ("dropout", "observe") and value.op not in between:
        between[value.op] = value
        value = value.arg
    return between, value


def behind(instr: Instr) -> Instr | None:
    """The layer that alone reads `instr`, perhaps dropped or rounded."""
    user = sole_user(instr)
    return behind(user) if user is not None and user.op in ("dropout", "observe") else user


def nonzeros(x: Tensor) -> Csr | None:
    """`x` [N, K] as CSR; None where a dense product does better or is needed."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
    if not plain or x.requires_grad or torch.is_autocast_enabled("cpu"):
        return None
    found: Csr = torch.ops.gnnfx.dense_to_csr(x)
    return found if 4 * len(found[2]) <= x.numel() else None


def rounded(
    quantizer: FakeQuantizer,
    x: Tensor,
    csr: Csr | None,
    protected: Tensor | None = None,
    owner: Tensor | None = None,
) -> tuple[Tensor, Csr | None]:
    """`x` and `csr` with the values that `csr` holds of it rounded, or else all of `x`."""
    # The gradient of a learned step is weighed by how many values there are, zeros among them.
    if csr is None or quantizer.policy.estimator == "learned-step":
        return quantizer(x, protected, owner), None
    rowptr, columns, values = csr
    if protected is not None and owner is not None:
        protected = protected.index_select(0, owner)
    quantizer.follow(x, protected)
    if protected is not None:
        rows = torch.repeat_interleave(rowptr.diff(), output_size=len(values))
        protected = protected.index_select(0, rows)
    return x, (rowptr, columns, quantizer.rounded(values, protected))


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
