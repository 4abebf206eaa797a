"""Device functions that make messages in registers, for kernels that reduce them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from gnnfx.kernels.aggregate_messages import PLAIN_ACTIVATIONS
from gnnfx.kernels.csr_numba import source, source_ahead
from gnnfx.kernels.epilogue_numba import CHANNELS, FIRST_FREE
from gnnfx.kernels.vectors_numba import (
    exp,
    leaky_relu,
    lesser,
    load_f32_like,
    load_i8_like,
    multiply_add,
    prefetch,
    read_f32,
    read_i32,
    relu,
    splat_f32_like,
    splat_i32_like,
    to_f32,
    where_positive,
    widen_i32,
)

# Places of the operands of a message, which two kernels share.
X, SRC, ROWPTR, EDGES, X_DST, EDGE, PERM, SCALE, ZERO_POINT = range(FIRST_FREE, FIRST_FREE + 9)
FIRST_EDGE, LAST_EDGE, MEAN, PARTIAL, NEXT_PARTIAL = range(FIRST_FREE + 9, FIRST_FREE + 14)
EDGE_WEIGHT, EDGE_BIAS, EDGE_CHANNELS = range(FIRST_FREE + 14, FIRST_FREE + 17)
TEMPERATURE = FIRST_FREE + 17
# How features of edges are read: through `perm` from the user's order, or one after the other, or
# as the product of few features with a weight.
NO_EDGES, LISTED, IN_TILE, MULTIPLIED = range(4)
GLU = len(PLAIN_ACTIVATIONS)  # the first gated activation
# Up to so many features of an edge, a product in registers is faster than one of a tile.
FEW_FEATURES = 32


@njit(forceinline=True)
def _sigmoid(y):
    """1 / (1 + exp(-y)), by the exponential of a number up to 0."""
    one = splat_f32_like(np.float32(1), y)
    small = exp(lesser(y, splat_f32_like(np.float32(0), y) - y))
    return where_positive(y, one, small) / (one + small)


@njit(forceinline=True)
def _softplus(y):
    """log(1 + exp(y)) = max(y, 0) + 2 atanh(t / (2 + t)) with t = exp(-|y|) up to 1."""
    two = splat_f32_like(np.float32(2), y)
    small = exp(lesser(y, splat_f32_like(np.float32(0), y) - y))
    ratio = small / (small + two)
    square = ratio * ratio
    series = splat_f32_like(np.float32(1 / 13), y)
    for divisor in (11, 9, 7, 5, 3, 1):
        series = multiply_add(series, square, splat_f32_like(np.float32(1 / divisor), y))
    return multiply_add(ratio * two, series, relu(y))


@njit(forceinline=True)
def _gate(value, gate, kind):
    """The gated activation of that place in MESSAGE_ACTIVATIONS."""
    return (value if kind == GLU else _softplus(value)) * _sigmoid(gate)


@njit(forceinline=True)
def _activate(y, kind, slope):
    """The plain activation of that place in MESSAGE_ACTIVATIONS on a vector."""
    if kind == 1:
        return relu(y)
    if kind == 2:
        return leaky_relu(y, splat_f32_like(slope, y))
    if kind == 3:
        return y * _sigmoid(y)
    if kind == 4:
        return _sigmoid(y)
    return y


@njit(forceinline=True)
def sum_parts(a, edge, channel, channels, own, coded, reads_x, edges):
    """A block of a message of so many channels before its activation, as many lanes as `own`.

    The last three are known when this is compiled.
    """
    value = own
    if reads_x:
        place = source(a[SRC], edge) * channels + channel
        if coded:
            zero_point = splat_i32_like(read_i32(a[ZERO_POINT]), own)
            steps = to_f32(widen_i32(load_i8_like(a[X] + place, own)) - zero_point)
            value = value + splat_f32_like(read_f32(a[SCALE]), own) * steps
        else:
            value = value + load_f32_like(a[X] + 4 * place, own)
    if edges == LISTED:
        place = source(a[PERM], edge) * channels + channel
        value = value + load_f32_like(a[EDGE] + 4 * place, own)
    elif edges == IN_TILE:
        place = (edge - a[FIRST_EDGE]) * channels + channel
        value = value + load_f32_like(a[EDGE] + 4 * place, own)
    elif edges == MULTIPLIED:
        feature = a[EDGE] + 4 * source(a[PERM], edge) * a[EDGE_CHANNELS]
        weight = a[EDGE_WEIGHT] + 4 * channel
        for _ in range(a[EDGE_CHANNELS]):
            factor = splat_f32_like(read_f32(feature), own)
            value = multiply_add(factor, load_f32_like(weight, own), value)
            feature += 4
            weight += 4 * channels
    return value


@njit(forceinline=True)
def load_own(a, row, channel, channels, like):
    """What is the same for all messages to a row: its own values and the bias of edges."""
    own = splat_f32_like(np.float32(0), like)
    if a[X_DST] != 0:
        own = load_f32_like(a[X_DST] + 4 * (row * channels + channel), like)
    if a[EDGE_BIAS] != 0:
        own = own + load_f32_like(a[EDGE_BIAS] + 4 * channel, like)
    return own


@njit(forceinline=True)
def make_message(a, edge, channel, own, gate, how):
    """A block of a message; `own` and `gate` are what all messages to a row have in common.

    `how` is known when this is compiled: whether x holds codes, whether it is read at all, how
    features of edges are, the place of the activation, its slope, and what is added last.
    """
    coded, reads_x, edges, kind, slope, offset = how
    channels = a[CHANNELS]
    if kind < GLU:
        value = sum_parts(a, edge, channel, channels, own, coded, reads_x, edges)
        value = _activate(value, kind, slope)
    else:
        value = sum_parts(a, edge, channel, 2 * channels, own, coded, reads_x, edges)
        other = sum_parts(a, edge, channels + channel, 2 * channels, gate, coded, reads_x, edges)
        value = _gate(value, other, kind)
    return value if offset == 0 else value + splat_f32_like(offset, own)


@njit(forceinline=True)
def prefetch_parts(a, edge, channel, gated, reads_x, edges, size, row_bytes, edge_bytes):
    """Ask for what the message of an edge some places ahead is made of."""
    channels, last_edge = a[CHANNELS], a[EDGES] - 1
    width = 2 * channels if gated else channels
    if reads_x:
        ahead = source_ahead(a[SRC], edge, last_edge) * width + channel
        prefetch(a[X] + size * ahead, row_bytes)
        if gated:
            prefetch(a[X] + size * (ahead + channels), row_bytes)
    if edges == LISTED:
        ahead = source_ahead(a[PERM], edge, last_edge) * width + channel
        prefetch(a[EDGE] + 4 * ahead, edge_bytes)
        if gated:
            prefetch(a[EDGE] + 4 * (ahead + channels), edge_bytes)
    if edges == MULTIPLIED:
        ahead = source_ahead(a[PERM], edge, last_edge) * a[EDGE_CHANNELS]
        prefetch(a[EDGE] + 4 * ahead, 64)
