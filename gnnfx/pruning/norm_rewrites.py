"""Norms over all channels of which only a share is left: the others are zeros that still count."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gnnfx.ir.program import Instr
from gnnfx.ir.rewriter import Rewriter


def layer_norm(rewriter: Rewriter, norm: Instr, share: float) -> Instr:
    """The layer norm of `norm.arg` [..., C] and of the zeros that were removed from it."""
    args, call = norm.args, _caller(rewriter, norm)
    mean = call("aten.mul.Tensor", call("aten.mean.dim", norm.arg, [-1], True), share)
    value = call("aten.sub.Tensor", norm.arg, mean)
    squares = call("aten.mean.dim", call("aten.mul.Tensor", value, value), [-1], True)
    variance = _with_removed(call, squares, mean, share)
    scale = call("aten.rsqrt.default", call("aten.add.Tensor", variance, args["eps"]))
    value = call("aten.mul.Tensor", value, scale)
    if args["weight"] is not None:
        value = call("aten.mul.Tensor", value, args["weight"])
    return value if args["bias"] is None else call("aten.add.Tensor", value, args["bias"])


def rms_norm(rewriter: Rewriter, norm: Instr, share: float) -> Instr:
    """`norm.arg` [..., C] divided by the root of its mean square, removed zeros included."""
    args, call = norm.args, _caller(rewriter, norm)
    eps = torch.finfo(norm.fake.dtype).eps if args["eps"] is None else args["eps"]
    squares = call("aten.mul.Tensor", norm.arg, norm.arg)
    mean = call("aten.mul.Tensor", call("aten.mean.dim", squares, [-1], True), share)
    scale = call("aten.rsqrt.default", call("aten.add.Tensor", mean, eps))
    value = call("aten.mul.Tensor", norm.arg, scale)
    return value if args["weight"] is None else call("aten.mul.Tensor", value, args["weight"])


def deviation(rewriter: Rewriter, std: Instr, share: float) -> Instr:
    """std(x - mean(x)) over all values of x and of the zeros that were removed from it."""
    call, difference = _caller(rewriter, std), std.arg
    squares = call("aten.mean.default", call("aten.mul.Tensor", difference, difference))
    variance = _with_removed(call, squares, difference.args["other"], share)
    return call("aten.sqrt.default", variance)


NORMS = {
    "aten.layer_norm.default": layer_norm,
    "aten.rms_norm.default": rms_norm,
    "aten.std.default": deviation,
}


def _caller(rewriter: Rewriter, norm: Instr) -> Callable[..., Instr]:
    """Inserts calls behind `norm`."""
    after = Instr(norm.node.next)
    return lambda op, *operands: rewriter.insert(after, op, *operands, like=norm)


def _with_removed(call: Callable[..., Instr], squares: Instr, mean: Instr, share: float) -> Instr:
    """The variance: a removed zero is as far from the mean as the mean is from zero."""
    left = call("aten.mul.Tensor", squares, share)
    removed = call("aten.mul.Tensor", call("aten.mul.Tensor", mean, mean), 1 - share)
    return call("aten.add.Tensor", left, removed)
