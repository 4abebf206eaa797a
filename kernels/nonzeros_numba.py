"""Device code that finds the floats of a row that are not zero, 64 at a time."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from gnnfx.kernels.vectors_numba import read_f32

BLOCK = 64


@intrinsic
def _nonzero_bits(typingctx, address):
    """Which of 64 floats at an address are not zero, the first in the lowest bit."""

    def codegen(context, builder, sig, args):
        floats = ir.VectorType(ir.FloatType(), BLOCK)
        values = builder.load(builder.inttoptr(args[0], ir.PointerType(floats)), align=4)
        different = builder.fcmp_unordered("!=", values, ir.Constant(floats, None))
        return builder.bitcast(different, ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def lowest_bit(typingctx, mask):
    """Position of the lowest bit that is set; 64 if there is none."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@intrinsic
def count_bits(typingctx, mask):
    """How many bits are set."""

    def codegen(context, builder, sig, args):
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen


@njit(forceinline=True)
def block_mask(row, start, length):
    """Which floats from `start` to the end of a block, or of the row of `length`, are not zero."""
    left = length - start
    if left >= BLOCK:
        return _nonzero_bits(row + 4 * start)
    if length >= BLOCK:
        # The last block overlaps the one before, of which it has nothing to say.
        mask = _nonzero_bits(row + 4 * (length - BLOCK)) >> (BLOCK - left)
        return mask & ((1 << left) - 1)
    mask = 0
    for i in range(left):
        mask |= (1 if read_f32(row + 4 * i) != 0 else 0) << i
    return mask
