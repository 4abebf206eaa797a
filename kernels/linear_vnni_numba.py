"""Linear layers on integer codes with AVX-512 VNNI: products, sum of layers and epilogue at once.

A tile of rows times a panel of outputs is summed in registers.  Tiles of some rows become a block
of float32 [rows, outputs] on the stack, which is finished before the next is begun.

The instruction multiplies unsigned by signed bytes: the codes of a block are first moved up by 128,
or made of floats right there, and sums start at what that and the zero point add to them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor
from torch.nn import functional

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    FIRST_FREE,
    PIECES,
    ROW_SCALE,
    ROWS,
    Epilogue,
    finish,
    to_codes,
)
from gnnfx.kernels.quantize import code_range
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    LINE,
    PAGE,
    load_f32,
    load_i8,
    pointer_to,
    prefetch,
    prefetch_line,
    read_f32,
    scratch_floats,
    splat_i8,
    splat_lanes,
    store,
    take_piece,
)

PANELS, BLOCK, ONE, LAYERS, FIRST_LAYER = range(FIRST_FREE, FIRST_FREE + 5)
# Codes or floats, steps of 4 channels, weight, start, multiplier; scale (0 for codes), zero point,
# least and greatest code.
_LAYER = 9

_LANES = 16  # of 32 bits
_TILE_ROWS = {4: 6, 3: 9, 2: 12, 1: 14}  # by vectors a panel: what 32 registers hold
_SUMS, _WORDS = 2**14, 2**15  # scratch memory; a word is four codes
_WORDS_AT_ONCE = 2**12  # in a block of several tiles: what stays in the first cache
_PRODUCTS_AT_ONCE = 64
_OPERATIONS_TO_FINISH = 20  # a vector of sums, whatever its width
_CODES, _FLOAT_BYTES = 64, 256  # a vector of codes, and what it is made of

_INTS, _FLOATS = ir.VectorType(ir.IntType(32), _LANES), ir.VectorType(ir.FloatType(), _LANES)
_I32, _I64 = ir.IntType(32), ir.IntType(64)

binding.initialize_native_asmparser()


@functools.cache
def has_vnni_tiles() -> bool:
    """Whether these kernels are the fastest: oneDNN uses matrix registers where there are any."""
    cpu: Any = torch.cpu
    has_vnni = cpu._is_avx512_supported() and cpu._is_vnni_supported()
    return bool(has_vnni and not cpu._is_amx_tile_supported())


@intrinsic(prefer_literal=True)
def _multiply_tile(
    typingctx,
    x,
    steps,
    weight,
    start,
    multiplier,
    factor,
    stride,
    out,
    pitch,
    ahead,
    more,
    rows,
    vectors,
):
    """out (+)= (x . weight + start) * multiplier * factor, on `rows` rows of unsigned codes.

    x: rows of 4 * steps bytes; weight: [steps, 16 * vectors, 4]; start: int32, multiplier:
    float32 [16 * vectors]; factor: a float32 every `stride` bytes; out: float32 rows every `pitch`
    bytes; ahead: where what is read later lies, a cache line a step; more: whether to add to out.
    """
    if not all(isinstance(count, types.IntegerLiteral) for count in (rows, vectors)):
        return None
    num_rows, num_vectors = range(rows.literal_value), range(vectors.literal_value)
    arithmetic = ir.FunctionType(_INTS, [_INTS] * 3)

    def codegen(context, builder, sig, args):
        x, steps, weight, start, multiplier, factor, stride, out, pitch, ahead, more = args[:11]
        add_products = ir.InlineAsm(arithmetic, "vpdpbusd $2, $1, $0", "=v,v,v,0")

        def place(base, index, size):
            return builder.add(base, builder.mul(index, _I64(size)))

        def pointer(base, kind, v=0):
            return pointer_to(builder, builder.add(base, _I64(4 * _LANES * v)), kind)

        def load(base, kind, v=0):
            return builder.load(pointer(base, kind, v), align=1, typ=kind)

        row_bytes = builder.mul(steps, _I64(4))
        row_of = [builder.add(x, builder.mul(row_bytes, _I64(r))) for r in num_rows]
        starts = [load(start, _INTS, v) for v in num_vectors]
        totals = [[cgutils.alloca_once_value(builder, s) for s in starts] for _ in num_rows]
        with cgutils.for_range(builder, steps) as loop:
            panel = place(weight, loop.index, 4 * _LANES * len(num_vectors))
            weights = [load(panel, _INTS, v) for v in num_vectors]
            prefetch_line(builder, place(ahead, loop.index, LINE), 2)
            for row, sums in zip(row_of, totals, strict=True):
                codes = splat_lanes(builder, load(place(row, loop.index, 4), _I32), _LANES)
                for total, by in zip(sums, weights, strict=True):
                    added = builder.call(add_products, [codes, by, builder.load(total)])
                    builder.store(added, total)
        for r, sums in zip(num_rows, totals, strict=True):
            by = load(builder.add(factor, builder.mul(stride, _I64(r))), ir.FloatType())
            by = splat_lanes(builder, by, _LANES)
            row = builder.add(out, builder.mul(pitch, _I64(r)))
            for v, total in enumerate(sums):
                scale = builder.fmul(load(multiplier, _FLOATS, v), by)
                value = builder.fmul(builder.sitofp(builder.load(total), _FLOATS), scale)
                added = builder.fadd(value, load(row, _FLOATS, v))
                value = builder.select(more, added, value)
                builder.store(value, pointer(row, _FLOATS, v), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(*[i64] * 10, types.boolean, rows, vectors), codegen


@njit(forceinline=True)
def _to_unsigned(codes, out, count):
    """Write int8 codes, a multiple of four, as bytes that are 128 higher."""
    done = 0
    while done + _CODES <= count:
        store(out + done, load_i8(codes + done, _CODES) + splat_i8(-128, _CODES))
        done += _CODES
    while done < count:
        store(out + done, load_i8(codes + done, 4) + splat_i8(-128, 4))
        done += 4


@njit(forceinline=True)
def _round_unsigned(x, out, count, scale, zero_point, low, high):
    """Write such bytes of float32 values, a multiple of four."""
    done = 0
    while done + _CODES <= count:
        prefetch(x + 4 * done + PAGE, _FLOAT_BYTES)
        codes = to_codes(load_f32(x + 4 * done, _CODES), scale, zero_point, low, high)
        store(out + done, codes + splat_i8(-128, _CODES))
        done += _CODES
    while done < count:
        codes = to_codes(load_f32(x + 4 * done, 4), scale, zero_point, low, high)
        store(out + done, codes + splat_i8(-128, 4))
        done += 4


def _linear(rows_at_once, vectors, lanes):
    """Rows of the sum of some layers, finished."""
    panel_bytes = 64 * vectors

    def kernel(a):
        scratch, unsigned = scratch_floats(_SUMS), scratch_floats(_WORDS)
        pitch = a[PANELS] * panel_bytes
        tiles = (a[ROWS] + rows_at_once - 1) // rows_at_once
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            first = tiles * piece // a[PIECES] * rows_at_once
            end = min(tiles * (piece + 1) // a[PIECES] * rows_at_once, a[ROWS])
            while first < end:
                last = min(first + a[BLOCK], end)
                for t in range(a[LAYERS]):
                    at = FIRST_LAYER + _LAYER * t
                    steps, weight, start, multiplier = a[at + 1], a[at + 2], a[at + 3], a[at + 4]
                    step_bytes = 4 if a[at + 5] == 0 else 16
                    x, count = a[at] + step_bytes * steps * first, 4 * steps * (last - first)
                    if a[at + 5] == 0:
                        _to_unsigned(x, unsigned, count)
                    else:
                        rounding = read_f32(a[at + 5]), a[at + 6], a[at + 7], a[at + 8]
                        _round_unsigned(x, unsigned, count, *rounding)
                    ahead = a[at] + step_bytes * steps * last
                    for panel in range(a[PANELS]):
                        skip = panel * panel_bytes
                        row = first
                        while row < last:
                            codes = unsigned + 4 * steps * (row - first)
                            out = scratch + pitch * (row - first) + skip
                            factor, stride = a[ONE], 0
                            if a[ROW_SCALE] != 0:
                                factor, stride = a[ROW_SCALE] + 4 * row, 4
                            by, plus, times = weight + skip * steps, start + skip, multiplier + skip
                            if row + rows_at_once <= last:
                                _multiply_tile(
                                    codes, steps, by, plus, times, factor, stride, out, pitch,
                                    ahead, t > 0, rows_at_once, vectors,
                                )  # fmt: skip
                                row += rows_at_once
                            else:
                                _multiply_tile(
                                    codes, steps, by, plus, times, factor, stride, out, pitch,
                                    ahead, t > 0, 1, vectors,
                                )  # fmt: skip
                                row += 1
                            ahead += LINE * steps
                for row in range(first, last):
                    channel = 0
                    while channel < a[CHANNELS]:
                        channel = min(channel, a[CHANNELS] - lanes)
                        total = load_f32(scratch + pitch * (row - first) + 4 * channel, lanes)
                        finish(total, a, row, channel)
                        channel += lanes
                first = last

    return kernel


def _vectors_a_panel(vectors):
    """As many as make the fewest steps of a row: each panel also reads the row's codes."""
    return min(_TILE_ROWS, key=lambda v: -(-vectors // v) * (v + 0.75))


class TiledWeight:
    """A weight [O, K] of int8 codes in panels of outputs, padded with zeros."""

    def __init__(self, codes: Tensor) -> None:
        outputs, channels = codes.shape
        self.vectors = _vectors_a_panel(-(-outputs // _LANES))
        width = _LANES * self.vectors
        self.panels, self.steps = -(-outputs // width), -(-channels // 4)
        self.outputs, self.channels, self.padded = outputs, channels, self.panels * width
        padded = codes.new_zeros((self.padded, 4 * self.steps))
        padded[:outputs, :channels] = codes
        panels = padded.view(self.panels, width, self.steps, 4)
        self.codes = panels.transpose(1, 2).contiguous()
        self._sums = padded.sum(1, dtype=torch.int32)
        self._start: tuple[int | None, Tensor] = (None, self._sums)

    @staticmethod
    def takes(codes: Tensor) -> bool:
        """Whether the codes and the sums of a tile of rows fit in the scratch memory."""
        outputs, channels = codes.shape
        rows = max(_TILE_ROWS.values())
        return rows * (outputs + 4 * _LANES) <= _SUMS and rows * -(-channels // 4) <= _WORDS

    def start(self, zero_point: int) -> Tensor:
        """Sums of no products yet, of codes that are 128 too high."""
        known, start = self._start
        if known != zero_point:
            start = self._sums * -(zero_point + 128)
            self._start = zero_point, start
        return start

    def by_output(self, values: Tensor) -> Tensor:
        """`values` [O], padded."""
        return _padded(values, self.padded)

    @property
    def pads_rows(self) -> bool:
        """Whether `rows` copies."""
        return self.channels % 4 != 0

    def rows(self, x: Tensor) -> Tensor:
        """int8 codes or floats [N, K], channels padded to whole steps."""
        return _padded(x, 4 * self.steps)


class Term(NamedTuple):
    """A layer: x [N, K] is int8 codes, or floats that are rounded to `bits` where there is a scale.

    multiplier: a factor [O] for the sums of the layer.
    """

    weight: TiledWeight
    x: Tensor
    zero_point: int
    multiplier: Tensor
    scale: Tensor | None
    bits: int

    def operands(self) -> list[Tensor | int | None]:
        """What the kernel reads of it, in its order."""
        weight, zero_point = self.weight, self.zero_point
        x, start = weight.rows(self.x), weight.start(zero_point)
        multiplier, rounding = weight.by_output(self.multiplier), code_range(self.bits)
        known = weight.steps, weight.codes, start, multiplier
        return [x, *known, self.scale, zero_point, *rounding]


@functools.cache
def _one() -> Tensor:
    return torch.ones((), device="cpu")


def _padded(values: Tensor, width: int) -> Tensor:
    """`values` [..., w] with zeros up to [..., width]; without a copy where w is width."""
    missing = width - values.shape[-1]
    return functional.pad(values, (0, missing)) if missing else values


def linear_tiles(terms: Sequence[Term], out: Tensor, epilogue: Epilogue) -> None:
    """Write the finished sum of layers to `out` [N, O]: floats, or int8 codes."""
    weight = terms[0].weight
    rows, outputs = out.shape
    tile_rows = _TILE_ROWS[weight.vectors]
    most_steps = max(term.weight.steps for term in terms)
    at_once = min(_SUMS // weight.padded, _WORDS_AT_ONCE // most_steps)
    block = max(1, at_once // tile_rows) * tile_rows
    operands = [operand for term in terms for operand in term.operands()]
    layers = [o if isinstance(o, int) else address(o) for o in operands]
    lanes = choose_lanes(outputs)
    kernel = compiled(_linear, tile_rows, weight.vectors, lanes)
    products = outputs * sum(term.weight.channels for term in terms) // _PRODUCTS_AT_ONCE
    finished = _OPERATIONS_TO_FINISH * -(-outputs // lanes)
    pieces = count_pieces(rows * (products + finished), -(-rows // tile_rows))
    head = [weight.panels, block, address(_one()), len(terms)]
    launch(kernel, pieces, [*epilogue.arguments(out), *head, *layers])
