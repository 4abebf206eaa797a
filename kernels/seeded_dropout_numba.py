"""CPU code of `seeded_dropout`: a hash of each place in the lanes that hold its value."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import ctypes

import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_floats
from gnnfx.kernels.memory import empty
from gnnfx.kernels.seeded_dropout import FIRST_FACTOR, SECOND_FACTOR, key_of, least_kept
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    load_f32,
    read_f32,
    splat_f32,
    splat_lanes,
    store,
    take_piece,
)

PIECES, COUNT, X, OUT, KEY, LEAST, FACTOR = range(1, 8)
_MOST_LANES = 32
# A hash takes the time of so many of the operations that the thread pool counts.
_OPERATIONS = 2


@intrinsic
def _zero_where_dropped(typingctx, value, place, key, least):
    """`value` where hash(place + lane, key) >= least, else 0; all three are int64."""
    bits = ir.VectorType(ir.IntType(32), value.lanes)

    def codegen(context, builder, sig, args):
        def every(number):
            return splat_lanes(builder, builder.trunc(number, ir.IntType(32)), value.lanes)

        def shifted(x, distance):
            return builder.xor(x, builder.lshr(x, ir.Constant(bits, [distance] * value.lanes)))

        def mixed(x):
            for distance, factor in ((16, FIRST_FACTOR), (15, SECOND_FACTOR)):
                x = builder.mul(shifted(x, distance), ir.Constant(bits, [factor] * value.lanes))
            return shifted(x, 16)

        values, place, key, least = args
        high = builder.lshr(key, ir.IntType(64)(32))
        lanes = ir.Constant(bits, list(range(value.lanes)))
        hashed = mixed(builder.xor(builder.add(every(place), lanes), every(key)))
        hashed = mixed(builder.xor(hashed, every(high)))
        kept = builder.icmp_unsigned(">=", hashed, every(least))
        return builder.select(kept, values, ir.Constant(values.type, None))

    return value(value, types.int64, types.int64, types.int64), codegen


def _drop(lanes):
    def kernel(a):
        factor = splat_f32(read_f32(a[FACTOR]), lanes)
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            place, stop = a[COUNT] * piece // a[PIECES], a[COUNT] * (piece + 1) // a[PIECES]
            while place < stop:
                place = max(min(place, stop - lanes), 0)
                values = load_f32(a[X] + 4 * place, lanes) * factor
                store(a[OUT] + 4 * place, _zero_where_dropped(values, place, a[KEY], a[LEAST]))
                place += lanes

    return kernel


def reject_seeded_dropout(x: Tensor, p: float, seed: Tensor) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if x.numel() >= 2**32:
        return "x has more values than places are told apart"
    if p >= 1:
        return "nothing is kept"
    return reject_floats(x=x)


def seeded_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    out, count = empty(tuple(x.shape)), x.numel()
    if count:
        factor = torch.tensor(1 / (1 - p), dtype=torch.float32, device="cpu")
        key = ctypes.c_int64(key_of(int(seed))).value
        args = [count, address(x), address(out), key, least_kept(p), address(factor)]
        kernel = compiled(_drop, choose_lanes(count, _MOST_LANES))
        launch(kernel, count_pieces(_OPERATIONS * count, count), args)
    return out
