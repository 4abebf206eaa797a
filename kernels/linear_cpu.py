"""CPU code of `quantized_linear`: exact integer products in oneDNN, the epilogue in Numba.

Rows are taken a block at a time, so that the products of a block are still in the cache when
their epilogue reads them.  oneDNN has fast kernels for unsigned activations only: codes and zero
point are moved up by 128.  Without VNNI it adds pairs of products in 16 bits, which may saturate;
there, codes are multiplied as float32 in slices of channels whose sums stay within 2**24.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.epilogue import empty_result
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    FIRST_FREE,
    PIECES,
    ROW_SCALE,
    ROWS,
    epilogue_arguments,
    finish,
)
from gnnfx.kernels.linear_sum import in_turn, reject_one
from gnnfx.kernels.quantize_numba import pack_codes, unpack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import load_f32, read_f32, splat_f32, take_piece

TOTAL, MULTIPLIER = FIRST_FREE, FIRST_FREE + 1
_EXACT_CHANNELS = 1024
# Small enough to stay in the cache, large enough that waiting for threads does not matter.
_BLOCK_VALUES = 2**22
_MOST_BLOCKS = 8
_REMEMBERED = 256


def _finish_rows(lanes):
    """The epilogue on float32 sums [rows, channels]."""

    def kernel(a):
        channels = a[CHANNELS]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            for row in range(a[ROWS] * piece // a[PIECES], a[ROWS] * (piece + 1) // a[PIECES]):
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    multiplier = load_f32(a[MULTIPLIER] + 4 * channel, lanes)
                    if a[ROW_SCALE] != 0:
                        factor = read_f32(a[ROW_SCALE] + 4 * row)
                        multiplier = multiplier * splat_f32(factor, lanes)
                    total = load_f32(a[TOTAL] + 4 * (row * channels + channel), lanes)
                    finish(total * multiplier, a, row, channel)
                    channel += lanes

    return kernel


class Weight:
    """A weight [O, K] as its matrix product wants it."""

    def __init__(self, codes: Tensor, has_vnni: bool) -> None:
        self.outputs, self.channels = codes.shape
        self._packed = None
        if has_vnni:
            self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
            self._ones = torch.ones(self.outputs, device="cpu")
            self._zeros = torch.zeros(self.outputs, dtype=torch.int32, device="cpu")
        else:
            self._slices = [s.float().t() for s in codes.split(_EXACT_CHANNELS, 1)]
            self._sums = codes.sum(1, dtype=torch.int32)

    def multiply(self, x: Tensor, zero_point: int) -> Tensor:
        """Sum of (x - zero_point) * weight over K for int8 `x` [N, K], rounded to float32."""
        if self._packed is not None:
            return self._onednn(x, zero_point, self._ones, None, None, "none", None, None)
        total = self._sums * -zero_point
        for part, weight in zip(x.split(_EXACT_CHANNELS, 1), self._slices, strict=True):
            total = total + (part.float() @ weight).int()
        return total.float()

    def multiply_and_finish(
        self,
        x: Tensor,
        zero_point: int,
        multiplier: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        out_scale: Tensor | None,
        out_zero_point: Tensor | None,
    ) -> Tensor | None:
        """The finished rows, floats or int8 codes, where oneDNN makes them in one pass.

        It multiplies by the reciprocal of `out_scale`: about one tie in a million goes the other
        way.
        """
        if self._packed is None or activation == "elu":
            return None
        qparams = out_scale, out_zero_point
        return self._onednn(x, zero_point, multiplier, bias, residual, activation, *qparams)

    def _onednn(
        self,
        x: Tensor,
        zero_point: int,
        multiplier: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        out_scale: Tensor | None,
        out_zero_point: Tensor | None,
    ) -> Tensor:
        codes = x.view(torch.uint8) ^ 128
        product = codes, 1.0, zero_point + 128, self._packed, multiplier, self._zeros
        output = (
            1.0 if out_scale is None else float(out_scale),
            0 if out_zero_point is None else int(out_zero_point),
            torch.float32 if out_scale is None else torch.int8,
        )
        op = torch.ops.onednn.qlinear_pointwise
        if residual is None:
            return op.default(*product, bias, *output, activation, [], "")  # type: ignore[no-any-return]
        added = 1.0, 0, "add", 1.0
        return op.binary(*product, residual, bias, *output, *added, activation, [], "")  # type: ignore[no-any-return]


class _Weights:
    """Prepared weights by where they lie; one whose contents have changed is prepared again."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, tuple[Tensor, Weight]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, weight: Tensor, channels: int, bits: int) -> Weight:
        key = weight.data_ptr(), tuple(weight.shape), channels, bits
        with self._lock:
            known = self._known.get(key)
            if known is None or not torch.equal(known[0], weight):
                codes = unpack_codes(weight.contiguous(), channels, bits)
                known = weight.clone(), Weight(codes, has_exact_int8())
            self._known[key] = known
            self._known.move_to_end(key)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return known[1]


@functools.cache
def has_exact_int8() -> bool:
    """Whether oneDNN adds int8 products in 32 bits on this CPU."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported and supported()) and hasattr(torch.ops.onednn, "qlinear_pointwise")


_WEIGHTS = _Weights()


def prepared(weight: Tensor, channels: int, bits: int) -> Weight:
    """The weight of these codes in the form for `finish_block`."""
    return _WEIGHTS.get(weight, channels, bits)


def block_rows(rows: int, width: int) -> int:
    """Rows to take at a time of so many, when each needs `width` values in between."""
    return max(_BLOCK_VALUES // max(width, 1), rows // _MOST_BLOCKS + 1)


def finish_block(
    total: Tensor,
    multiplier: Tensor,
    out: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_bits: int,
) -> None:
    """Write the result of sums `total` [n, O] to `out`: floats, or int8 codes of `out_bits`."""
    rows, outputs = total.shape
    args = epilogue_arguments(
        rows,
        outputs,
        out,
        row_scale,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )
    kernel = compiled(_finish_rows, choose_lanes(outputs, 64))
    pieces = count_pieces(rows * outputs, rows)
    launch(kernel, pieces, [*args, address(total), address(multiplier)])


def reject_quantized_linear(
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
) -> str | None:
    operands = {"x": x, "bias": bias, "residual": residual, "row_scale": row_scale}
    for name, operand in operands.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    return None if channels else "there are no channels to sum"


def quantized_linear(
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
    rows, outputs = x.shape[0], weight.shape[0]
    dtype = torch.float32 if out_scale is None else torch.int8
    if not (rows and outputs):
        out = torch.empty((rows, outputs), dtype=dtype, device="cpu")
        return out if out_scale is None else pack_codes(out, out_bits)
    ready, zero = prepared(weight, channels, weight_bits), int(zero_point)
    multiplier = scale * weight_scale
    codes = unpack_codes(x, channels, bits)
    if row_scale is None and out_bits == 8:
        rest = bias, residual, activation, out_scale, out_zero_point
        finished = ready.multiply_and_finish(codes, zero, multiplier, *rest)
        if finished is not None:
            return finished
    out = torch.empty((rows, outputs), dtype=dtype, device="cpu")
    for first in range(0, rows, size := block_rows(rows, outputs)):
        part = slice(first, first + size)
        finish_block(
            ready.multiply(codes[part], zero),
            multiplier,
            out[part],
            None if row_scale is None else row_scale[part],
            bias,
            None if residual is None else residual[part],
            activation,
            out_scale,
            out_zero_point,
            out_bits,
        )
    return out if out_scale is None else pack_codes(out, out_bits)


reject_quantized_linear_sum = partial(reject_one, reject_quantized_linear)


def quantized_linear_sum(
    x: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor],
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    channels: Sequence[int],
    bits: Sequence[int],
    weight_bits: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    rows, width = x[0].shape[0], weight[0].shape[0]
    layers = scale, zero_point, weight, weight_scale, channels, bits, weight_bits
    finished = activation, out_scale, out_zero_point, out_bits
    size = block_rows(rows, width)
    if rows <= size:
        return in_turn(quantized_linear, x, *layers, bias, residual, *finished)
    out = empty_result(x[0], rows, width, out_scale, out_bits)
    for first in range(0, rows, size):
        part = slice(first, first + size)
        below = None if residual is None else residual[part]
        inputs = [codes[part] for codes in x]
        out[part] = in_turn(quantized_linear, inputs, *layers, bias, below, *finished)
    return out
