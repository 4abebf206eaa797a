"""CPU code of `quantized_linear` and `quantized_linear_sum`: exact integer products.

With AVX-512 VNNI, kernels of ours; with AMX or only AVX-VNNI, oneDNN, and the epilogue in Numba
where oneDNN has none.  oneDNN has fast kernels for unsigned activations only: codes and zero point
are moved up by 128.  Without VNNI it adds pairs of products in 16 bits, which may saturate; there,
codes are multiplied as float32 in slices of channels whose sums stay within 2**24.  Without tiles,
rows are taken a block at a time, so that sums are in the cache when they are read again.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    FIRST_FREE,
    PIECES,
    ROW_SCALE,
    ROWS,
    Epilogue,
    finish,
)
from gnnfx.kernels.linear_sum import reject_one
from gnnfx.kernels.linear_vnni_numba import Term, TiledWeight, has_vnni_tiles, linear_tiles
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize_numba import pack_codes, quantize, unpack_codes
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

    def __init__(self, codes: Tensor) -> None:
        self.outputs, self.channels = codes.shape
        self.tiled = TiledWeight(codes) if has_vnni_tiles() and TiledWeight.takes(codes) else None
        self._packed = None
        if self.tiled is None and has_exact_int8():
            self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
            self._ones = torch.ones(self.outputs, device="cpu")
            self._zeros = torch.zeros(self.outputs, dtype=torch.int32, device="cpu")
        elif self.tiled is None:
            self._slices = [s.float().t() for s in codes.split(_EXACT_CHANNELS, 1)]
            self._sums = codes.sum(1, dtype=torch.int32)

    def finish(
        self, x: Tensor, zero_point: int, multiplier: Tensor, out: Tensor, epilogue: Epilogue
    ) -> None:
        """Write the layer on int8 `x` [n, K] to `out` [n, O], without tiles.

        oneDNN, where it makes the rows in one pass, rounds the steps of the epilogue in its own
        way: about two codes in a million, those next to a tie, differ by one.
        """
        in_one_pass = epilogue.row_scale is None and epilogue.out_bits == 8
        if self._packed is not None and in_one_pass and epilogue.activation != "elu":
            out.copy_(self._onednn(x, zero_point, multiplier, epilogue))
            return
        total = self._multiply(x, zero_point)
        kernel = compiled(_finish_rows, choose_lanes(self.outputs, 64))
        pieces = count_pieces(out.numel(), len(out))
        args = epilogue.arguments(out)
        launch(kernel, pieces, [*args, address(total), address(multiplier)])

    def _multiply(self, x: Tensor, zero_point: int) -> Tensor:
        """Sum of (x - zero_point) * weight over K, rounded to float32."""
        if self._packed is not None:
            return self._onednn(x, zero_point, self._ones, Epilogue())
        total = self._sums * -zero_point
        for part, weight in zip(x.split(_EXACT_CHANNELS, 1), self._slices, strict=True):
            total = total + (part.float() @ weight).int()
        return total.float()

    def _onednn(self, x: Tensor, zero_point: int, multiplier: Tensor, epilogue: Epilogue) -> Tensor:
        codes = x.view(torch.uint8) ^ 128
        product = codes, 1.0, zero_point + 128, self._packed, multiplier, self._zeros
        out_scale, out_zero_point = epilogue.out_scale, epilogue.out_zero_point
        output = (
            1.0 if out_scale is None else float(out_scale),
            0 if out_zero_point is None else int(out_zero_point),
            torch.float32 if out_scale is None else torch.int8,
        )
        op = torch.ops.onednn.qlinear_pointwise
        activated: tuple[Any, ...] = (epilogue.activation, [], "")
        if epilogue.residual is None:
            return op.default(*product, epilogue.bias, *output, *activated)  # type: ignore[no-any-return]
        added = 1.0, 0, "add", 1.0
        operands = epilogue.residual, epilogue.bias
        return op.binary(*product, *operands, *output, *added, *activated)  # type: ignore[no-any-return]


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
                known = weight.clone(), Weight(codes)
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
    """The weight of these codes in the form that `multiply` wants."""
    return _WEIGHTS.get(weight, channels, bits)


class Layer(NamedTuple):
    """A weight, the int8 codes [N, K] it multiplies, their zero point, and a factor [O].

    With a scale, x is floats: tiles round it to codes of `bits` as they read it.
    """

    weight: Weight
    x: Tensor
    zero_point: int
    multiplier: Tensor
    scale: Tensor | None = None
    bits: int = 8

    @classmethod
    def of(
        cls,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        channels: int,
        bits: int,
        weight_bits: int,
    ) -> Layer:
        ready = prepared(weight, channels, weight_bits)
        multiplied = int(zero_point), scale * weight_scale
        if x.dtype == torch.float32:
            x = x.contiguous()
            if ready.tiled is not None and not ready.tiled.pads_rows:
                return cls(ready, x, *multiplied, scale, bits)
            x = quantize(x, scale, zero_point, bits)
        return cls(ready, unpack_codes(x, channels, bits), *multiplied)

    def finish(self, rows: slice, out: Tensor, epilogue: Epilogue) -> None:
        """Write some rows of this layer alone."""
        part = self._replace(x=self.x[rows])
        if (term := part.term) is not None:
            linear_tiles([term], out, epilogue)
        else:
            self.weight.finish(part.x, self.zero_point, self.multiplier, out, epilogue)

    @property
    def term(self) -> Term | None:
        """The layer as tiles take it, where its weight is in panels."""
        return None if self.weight.tiled is None else Term(self.weight.tiled, *self[1:])


def block_rows(rows: int, width: int) -> int:
    """Rows to take at a time of so many, when each needs `width` values in between."""
    return max(_BLOCK_VALUES // max(width, 1), rows // _MOST_BLOCKS + 1)


def multiply(layers: Sequence[Layer], out: Tensor, epilogue: Epilogue) -> None:
    """Write the finished sum of layers to `out` [N, O]: floats, or int8 codes."""
    rows, outputs = out.shape
    if not out.numel():
        return
    terms = [term for layer in layers if (term := layer.term) is not None]
    if len(terms) == len(layers):
        linear_tiles(terms, out, epilogue)
        return
    for first in range(0, rows, size := block_rows(rows, outputs)):
        part = slice(first, first + size)
        last = epilogue.part(part)
        for layer in layers[:-1]:
            total = empty((len(out[part]), outputs))
            layer.finish(part, total, Epilogue(residual=last.residual))
            last = last._replace(residual=total)
        layers[-1].finish(part, out[part], last)


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
    codes = None if x.dtype == torch.float32 else x
    operands = {"x": codes, "bias": bias, "residual": residual, "row_scale": row_scale}
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
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((x.shape[0], weight.shape[0]), dtype)
    layer = Layer.of(x, scale, zero_point, weight, weight_scale, channels, bits, weight_bits)
    qparams = out_scale, out_zero_point, out_bits
    multiply([layer], out, Epilogue(row_scale, bias, residual, activation, *qparams))
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
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((x[0].shape[0], weight[0].shape[0]), dtype)
    terms = x, scale, zero_point, weight, weight_scale, channels, bits, weight_bits
    layers = [Layer.of(*term) for term in zip(*terms, strict=True)]
    qparams = out_scale, out_zero_point, out_bits
    multiply(layers, out, Epilogue(None, bias, residual, activation, *qparams))
    return out if out_scale is None else pack_codes(out, out_bits)
