"""CPU implementations of quantized_linear: oneDNN where its int8 arithmetic is exact, else float.

Without VNNI, oneDNN adds pairs of products in 16 bits and may saturate; there, codes are
multiplied as float32 in slices of 1024 channels, whose partial sums stay below 2**24.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gnnfx.kernels.aggregate import epilogue
from gnnfx.kernels.quantize import pack, to_codes, unpack

_EXACT_CHANNELS = 1024


class _Prepared:
    """A weight in the form that a kernel wants, remembered while its contents stay the same."""

    def __init__(self) -> None:
        self._known = WeakIdKeyDictionary()

    def get(self, weight: Tensor, channels: int, bits: int, rows: int) -> Any:
        known = self._known.get(weight)
        if known is None or not torch.equal(known[0], weight):
            codes = unpack(weight, channels, bits)
            packed = torch.ops.onednn.qlinear_prepack(codes, [max(rows, 1), channels])
            known = (weight.clone(), packed)
            self._known[weight] = known
        return known[1]


@functools.cache
def _vnni() -> bool:
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(probe and probe()) and hasattr(torch.ops.onednn, "qlinear_pointwise")


def reject_onednn(x: Tensor, *args: Any, **kwargs: Any) -> str | None:
    """Why oneDNN cannot take these arguments, or None."""
    if not _vnni():
        return "this CPU has no exact int8 product (VNNI) in oneDNN"
    if x.shape[0] == 0:
        return "there are no rows"
    return None


_PREPARED = _Prepared()


def onednn(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    channels: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    weight_bits: int = 8,
    out_bits: int = 8,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Rows or codes as the reference gives them, through oneDNN's int8 matrix product."""
    packed = _PREPARED.get(weight, channels, weight_bits, x.shape[0])
    codes = unpack(x, channels, bits)
    plain = row_scale is None and residual is None
    direct = plain and out_scale is not None and out_bits == 8
    zeros = _zeros(weight_scale.shape[0])
    y = torch.ops.onednn.qlinear_pointwise(
        codes,
        float(scale),
        int(zero_point),
        packed,
        weight_scale,
        zeros,
        bias if row_scale is None else None,
        float(out_scale) if direct else 1.0,  # type: ignore[arg-type]
        int(out_zero_point) if direct else 0,  # type: ignore[arg-type]
        torch.int8 if direct else torch.float32,
        activation if plain else "none",
        [],
        "",
    )
    if direct:
        return y  # type: ignore[no-any-return]
    if row_scale is not None:
        y.mul_(row_scale[:, None])
        if bias is not None:
            y.add_(bias)
    if not plain:
        y = epilogue(y, None, residual, activation)
    return _finish(y, out_scale, out_zero_point, out_bits)


@functools.cache
def _zeros(outputs: int) -> Tensor:
    return torch.zeros(outputs, dtype=torch.int32)


def _finish(
    y: Tensor, out_scale: Tensor | None, out_zero_point: Tensor | None, out_bits: int
) -> Tensor:
    if out_scale is None or out_zero_point is None:
        return y
    if out_bits == 8:
        return torch.ops.gnnfx.quantize(y, out_scale, out_zero_point)  # type: ignore[no-any-return]
    return pack(to_codes(y, out_scale, out_zero_point, out_bits), out_bits)


def reject_exact(*args: Any, **kwargs: Any) -> str | None:
    """The float32 form takes everything."""
    return None


def exact(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    channels: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    weight_bits: int = 8,
    out_bits: int = 8,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Rows or codes as the reference gives them, through float32 products of small integers."""
    codes = unpack(x, channels, bits)
    weights = unpack(weight, channels, weight_bits)
    acc = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    for start in range(0, channels, _EXACT_CHANNELS):
        part = slice(start, start + _EXACT_CHANNELS)
        acc += (codes[:, part].float() @ weights[:, part].float().T).int()
    acc -= zero_point * weights.sum(1, dtype=torch.int32)
    step = scale * weight_scale
    y = acc.float() * (step if row_scale is None else step * row_scale[:, None])
    return _finish(epilogue(y, bias, residual, activation), out_scale, out_zero_point, out_bits)
