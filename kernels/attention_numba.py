"""CPU code of `gnnfx.kernels.attention`: all heads of one destination, some of its edges at a time.

The logits of a few edges are computed, the running maximum and sum of each head are brought up to
date (sums so far are rescaled where the maximum grew), and the rows of these edges, still in the
cache, are added (`attention_rows_numba`).  Nothing is as long as the edge list.

Logits lie side by side as well: [edges, padded], where padded is a power of two of heads.  Sixteen
lanes hold those of several edges.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr import reject_large
from gnnfx.kernels.epilogue_numba import (
    FIRST_FREE,
    epilogue_arguments,
)
from gnnfx.kernels.memory import empty
from gnnfx.kernels.quantize_numba import pack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    exp,
    greater,
    load_f32_like,
    merge_lanes,
    read_f32,
    read_i32,
    rotate,
    splat_f32_like,
    store,
)

# VALUE are the rows that are summed, KEY those that are scored (0 for GAT, which has SCORE);
# TARGET are the destination's rows: scores, features or queries.  Strides are in bytes.  EDGE is
# added to values and keys (or to GAT's scores, in the order of SRC), KEY_EDGE to keys alone.
HEADS, PADDED, HEAD_CHANNELS, MEAN_HEADS, ROWPTR, SRC = range(FIRST_FREE, FIRST_FREE + 6)
VALUE, VALUE_STRIDE, VALUE_SCALE, VALUE_ZERO_POINT = range(FIRST_FREE + 6, FIRST_FREE + 10)
KEY, KEY_STRIDE, KEY_SCALE, KEY_ZERO_POINT = range(FIRST_FREE + 10, FIRST_FREE + 14)
TARGET, TARGET_STRIDE, FACTOR = range(FIRST_FREE + 14, FIRST_FREE + 17)
SCORE, SCORE_STRIDE, ATT, EDGE, EDGE_INDEX = range(FIRST_FREE + 17, FIRST_FREE + 22)
KEY_EDGE, KEY_EDGE_INDEX = range(FIRST_FREE + 22, FIRST_FREE + 24)
ROW_BYTES, LAST_EDGE, AHEAD = range(FIRST_FREE + 24, FIRST_FREE + 27)
# With features of edges, EDGE or KEY_EDGE are these, and rows are made of them for some edges.
FEATURES, EDGE_WEIGHT, EDGE_BIAS = range(FIRST_FREE + 27, FIRST_FREE + 30)

FLOATS = None, None  # rows that are not codes have neither scale nor zero point

MOST_HEADS = 256
MOST_CHANNELS = 4096  # of all heads together
_MOST_LANES = 128
_CHUNK_VALUES = 1024  # logits at a time; at least four edges of them
_CHUNK_EDGES = 32
SCORES_AHEAD = 48  # edges between asking for scores and reading them
_BYTES_AHEAD = 4096  # of rows asked for and not read yet, of 16 edges at most
# Scratch memory: logits; for each head its maximum, sum, rescaling and target score; sums by block.
_HIGHEST, SUM, RESCALE, TARGET_SCORE = (4 * (_CHUNK_VALUES + i * MOST_HEADS) for i in range(4))
ROW = 4 * (_CHUNK_VALUES + 4 * MOST_HEADS)
MADE = ROW + 4 * (2 * MOST_CHANNELS + 64)  # rows of edges
_MADE_VALUES = 2 * MOST_CHANNELS
SCRATCH = _CHUNK_VALUES + 4 * MOST_HEADS + 2 * MOST_CHANNELS + 64 + _MADE_VALUES + 64


@njit(forceinline=True)
def logit_groups(a, count):
    """(groups of 16 logits, floats between them, such columns) of the logits of some edges."""
    padded = a[PADDED]
    if padded <= 16:
        return (count * padded + 15) // 16, 16, 1
    return count, padded, padded // 16


@njit(forceinline=True)
def mute_tail(a, scratch, count, flat):
    """Let the places behind the last edge weigh nothing."""
    groups, stride, _ = logit_groups(a, count)
    if a[PADDED] < 16:
        place = scratch + 4 * (groups - 1) * stride
        nothing = splat_f32_like(np.float32(-np.inf), flat)
        live = count * a[PADDED] - 16 * (groups - 1)
        store(place, merge_lanes(load_f32_like(place, flat), nothing, live))


@njit(forceinline=True)
def read_qparams(scale, zero_point):
    """Scale and zero point at two addresses: 1 and 0 for floats, which have none."""
    if scale == 0:
        return np.float32(1), np.int32(0)
    return read_f32(scale), read_i32(zero_point)


@njit(forceinline=True)
def _fold_greatest(value, padded):
    """The greatest of the lanes of each head, in all of them, for heads every `padded` lanes."""
    if padded <= 8:
        value = greater(value, rotate(value, 8))
    if padded <= 4:
        value = greater(value, rotate(value, 4))
    if padded <= 2:
        value = greater(value, rotate(value, 2))
    if padded <= 1:
        value = greater(value, rotate(value, 1))
    return value


@njit(forceinline=True)
def _fold_sum(value, padded):
    """The sum of the lanes of each head, in all of them, for heads every `padded` lanes."""
    if padded <= 8:
        value = value + rotate(value, 8)
    if padded <= 4:
        value = value + rotate(value, 4)
    if padded <= 2:
        value = value + rotate(value, 2)
    if padded <= 1:
        value = value + rotate(value, 1)
    return value


@njit(forceinline=True)
def weigh_chunk(a, scratch, count, is_first, flat):
    """Turn logits into exp(logit - maximum so far), and update maximum, sum and rescaling."""
    groups, stride, columns = logit_groups(a, count)
    padded = a[PADDED]
    for column in range(columns):
        place = scratch + 64 * column
        highest = load_f32_like(place, flat)
        for i in range(1, groups):
            highest = greater(highest, load_f32_like(place + 4 * i * stride, flat))
        highest = _fold_greatest(highest, padded)
        total = splat_f32_like(np.float32(0), flat)
        if not is_first:
            before = load_f32_like(place + _HIGHEST, flat)
            highest = greater(before, highest)
            rescale = exp(before - highest)
            store(place + RESCALE, rescale)
            total = load_f32_like(place + SUM, flat) * rescale
        for i in range(groups):
            weight = exp(load_f32_like(place + 4 * i * stride, flat) - highest)
            store(place + 4 * i * stride, weight)
            total = total + weight
        store(place + _HIGHEST, highest)
        store(place + SUM, total)


@njit(forceinline=True)
def invert_sums(a, scratch, flat):
    """Turn the sums of weights into what sums of rows are multiplied with."""
    scale = np.float32(1)
    if a[EDGE_INDEX] == 0:
        scale = read_qparams(a[VALUE_SCALE], a[VALUE_ZERO_POINT])[0]
    for column in range(0, max(a[PADDED], 16), 16):
        place = scratch + SUM + 4 * column
        total = _fold_sum(load_f32_like(place, flat), a[PADDED])
        total = total + splat_f32_like(np.float32(1e-16), flat)
        store(place, splat_f32_like(scale, flat) / total)


@njit(forceinline=True)
def edges_at_a_time(a):
    """Edges at a time."""
    most = min(_CHUNK_EDGES, _CHUNK_VALUES // max(a[PADDED], 16))
    if a[EDGE_WEIGHT] != 0:
        most = min(most, _MADE_VALUES // (a[HEADS] * a[HEAD_CHANNELS]))
    return most


def _layout(heads: int, channels: int) -> tuple[int, int, bool]:
    """(lanes of a block, lanes of a head in it, whether blocks lie within a head)."""
    if channels & (channels - 1) == 0:
        lanes = min(_MOST_LANES, 1 << ((heads * channels).bit_length() - 1))
        return lanes, min(lanes, channels), False
    lanes = next(lanes for lanes in (16, 8, 4, 2) if lanes <= channels)
    return lanes, lanes, True


def _row_stride(x: Tensor | None) -> int:
    """Bytes from a row to the next."""
    return 0 if x is None else x.stride(0) * x.element_size()


def reject_attention(
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    rows: dict[str, Tensor],
    others: dict[str, Tensor | None],
) -> str | None:
    heads, channels = value.shape[1:]
    if heads > MOST_HEADS or heads * channels > MOST_CHANNELS:
        return f"the kernel takes at most {MOST_HEADS} heads and {MOST_CHANNELS} channels"
    for name, x in rows.items():
        if not x[:1].is_contiguous():
            return f"rows of {name} are not contiguous"
    for name, operand in others.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    return reject_large(rowptr, src)


def launch_attention(
    make: Callable[..., Any],
    value: Tensor,
    value_qparams: tuple[Tensor | None, Tensor | None],
    key: Tensor | None,
    key_qparams: tuple[Tensor | None, Tensor | None],
    target: Tensor,
    rowptr: Tensor,
    src: Tensor,
    factor: float,
    mean_heads: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
    score: Tensor | None = None,
    att: Tensor | None = None,
    edge: Tensor | None = None,
    edge_index: Tensor | None = None,
    key_edge: Tensor | None = None,
    key_edge_index: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
) -> Tensor:
    num_rows, (heads, channels) = rowptr.shape[0] - 1, value.shape[1:]
    width = channels if mean_heads else heads * channels
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((num_rows, width), dtype)
    if out.numel() == 0:
        return out if out_scale is None else pack_codes(out, out_bits)
    lanes, segment, by_head = _layout(heads, channels)
    padded = 1 << (heads - 1).bit_length()
    row_bytes = heads * channels * value.element_size()
    kernel = compiled(make, lanes, segment, by_head, value.dtype == torch.int8)
    features = 0 if edge_weight is None else edge_weight.shape[1]
    by_feature = None if edge_weight is None else edge_weight.t().contiguous()
    factors = torch.tensor(factor, dtype=torch.float32, device="cpu")
    epilogue = epilogue_arguments(
        num_rows,
        width,
        out,
        None,
        bias,
        residual,
        activation,
        out_scale,
        out_zero_point,
        out_bits,
    )
    args = [
        *epilogue,
        *(heads, padded, channels, mean_heads, address(rowptr), address(src)),
        *(address(value), _row_stride(value), *map(address, value_qparams)),
        *(address(key), _row_stride(key), *map(address, key_qparams)),
        *(address(target), _row_stride(target), address(factors)),
        *(address(score), _row_stride(score), address(att), address(edge), address(edge_index)),
        *(address(key_edge), address(key_edge_index)),
        *(row_bytes, src.shape[0] - 1, max(1, min(16, _BYTES_AHEAD // row_bytes))),
        *(features, address(by_feature), address(edge_bias)),
    ]
    launch(kernel, count_pieces((src.shape[0] + num_rows) * heads * channels, num_rows), args)
    return out if out_scale is None else pack_codes(out, out_bits)
