"""CPU code of `segment_softmax` and its gradient: passes over the edges of a destination.

All but the first find the edges in the cache.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnfx.kernels.compile_numba import compiled
from gnnfx.kernels.csr_numba import piece_start
from gnnfx.kernels.memory import empty
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    exp,
    greater,
    load_f32,
    read_i32,
    splat_f32,
    store,
    take_piece,
)

PIECES, ROWS, HEADS, LOGITS, ROWPTR, OUT, SHARES = range(1, 8)
# An exp takes about as long as this many of the operations that the thread pool counts.
_OPERATIONS = 16


def _softmax(lanes):
    """Blocks of heads side by side; `lanes` divides the number of heads."""

    def kernel(a):
        rows, heads, logits, out = a[ROWS], a[HEADS], a[LOGITS], a[OUT]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(a[ROWPTR], rows, a[PIECES], piece)
            for row in range(begin, piece_start(a[ROWPTR], rows, a[PIECES], piece + 1)):
                first, stop = read_i32(a[ROWPTR] + 4 * row), read_i32(a[ROWPTR] + 4 * row + 4)
                for head in range(0, heads, lanes):
                    highest = splat_f32(np.float32(-np.inf), lanes)
                    for edge in range(first, stop):
                        place = 4 * (edge * heads + head)
                        highest = greater(highest, load_f32(logits + place, lanes))
                    total = splat_f32(np.float32(0), lanes)
                    for edge in range(first, stop):
                        place = 4 * (edge * heads + head)
                        weight = exp(load_f32(logits + place, lanes) - highest)
                        store(out + place, weight)
                        total = total + weight
                    total = total + splat_f32(np.float32(1e-16), lanes)
                    for edge in range(first, stop):
                        place = 4 * (edge * heads + head)
                        store(out + place, load_f32(out + place, lanes) / total)

    return kernel


def _gradient(lanes):
    """LOGITS is the gradient towards the SHARES."""

    def kernel(a):
        rows, heads, grad, shares = a[ROWS], a[HEADS], a[LOGITS], a[SHARES]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(a[ROWPTR], rows, a[PIECES], piece)
            for row in range(begin, piece_start(a[ROWPTR], rows, a[PIECES], piece + 1)):
                first, stop = read_i32(a[ROWPTR] + 4 * row), read_i32(a[ROWPTR] + 4 * row + 4)
                for head in range(0, heads, lanes):
                    mean = splat_f32(np.float32(0), lanes)
                    for edge in range(first, stop):
                        place = 4 * (edge * heads + head)
                        share = load_f32(shares + place, lanes)
                        mean = mean + load_f32(grad + place, lanes) * share
                    for edge in range(first, stop):
                        place = 4 * (edge * heads + head)
                        own = load_f32(grad + place, lanes) - mean
                        store(a[OUT] + place, own * load_f32(shares + place, lanes))

    return kernel


def reject_segment_softmax(logits: Tensor, rowptr: Tensor) -> str | None:
    if not logits.is_contiguous() or not rowptr.is_contiguous():
        return "logits or rowptr is not contiguous"
    if rowptr.dtype != torch.int32:
        return f"the kernel takes int32 indices, got {rowptr.dtype}"
    return None


def segment_softmax(logits: Tensor, rowptr: Tensor) -> Tensor:
    return _launched(_softmax, _OPERATIONS, logits, rowptr, None)


def reject_segment_softmax_gradient(grad: Tensor, shares: Tensor, rowptr: Tensor) -> str | None:
    return reject_segment_softmax(grad, rowptr) or reject_segment_softmax(shares, rowptr)


def segment_softmax_gradient(grad: Tensor, shares: Tensor, rowptr: Tensor) -> Tensor:
    return _launched(_gradient, 1, grad, rowptr, shares)


def _launched(
    make: Any, operations: int, values: Tensor, rowptr: Tensor, shares: Tensor | None
) -> Tensor:
    out = empty(values.shape)
    num_rows = rowptr.shape[0] - 1
    if out.numel():
        heads = values.numel() // values.shape[0]
        lanes = next(lanes for lanes in (8, 4, 2, 1) if heads % lanes == 0)
        pieces = count_pieces(operations * values.numel(), num_rows)
        args = [num_rows, heads, *map(address, (values, rowptr, out, shares))]
        launch(compiled(make, lanes), pieces, args)
    return out
