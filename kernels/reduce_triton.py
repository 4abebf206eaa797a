"""Device functions for reductions over the edges of a row: sum, mean, max and min.

A program walks the edges of its row BLOCK_E at a time.  Each of the BLOCK_E lanes keeps its own
partial result, so that lanes meet once a row and not once a step.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def start_reduction(REDUCE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr):
    """Partial results (f32 [BLOCK_E, BLOCK_C]) of no edges."""
    INF: tl.constexpr = float("inf")
    EMPTY: tl.constexpr = -INF if REDUCE == "max" else INF if REDUCE == "min" else 0.0
    return tl.full((BLOCK_E, BLOCK_C), EMPTY, dtype=tl.float32)


@triton.jit
def reduce_edges(acc, values, live, REDUCE: tl.constexpr):
    """Partial results after one more edge a lane, where it is `live`."""
    INF: tl.constexpr = float("inf")
    if REDUCE == "max":
        values = tl.where(live[:, None], values, -INF)
        acc = tl.maximum(acc, values, propagate_nan=tl.PropagateNan.ALL)
    elif REDUCE == "min":
        values = tl.where(live[:, None], values, INF)
        acc = tl.minimum(acc, values, propagate_nan=tl.PropagateNan.ALL)
    else:
        acc += tl.where(live[:, None], values, 0.0)
    return acc


@triton.jit
def end_reduction(acc, degree, REDUCE: tl.constexpr):
    """The result (f32 [1, BLOCK_C]) of `degree` edges; 0 of none."""
    if REDUCE == "max" or REDUCE == "min":
        INF: tl.constexpr = float("inf")
        # The reduction over lanes ignores NaN, torch's does not.
        invalid = tl.max((acc != acc).to(tl.int32), axis=0, keep_dims=True)
        if REDUCE == "max":
            y = tl.max(tl.where(acc == acc, acc, -INF), axis=0, keep_dims=True)
        else:
            y = tl.min(tl.where(acc == acc, acc, INF), axis=0, keep_dims=True)
        y = tl.where(invalid > 0, float("nan"), y)
        y = tl.where(degree > 0, y, 0.0)
    else:
        y = tl.sum(acc, axis=0, keep_dims=True)
    if REDUCE == "mean":
        y = tl.math.div_rn(y, tl.maximum(degree, 1).to(tl.float32))
    return y


def tile(edges: int, rows: int, channels: int) -> dict[str, int]:
    """Tile of a program: as many edges at a time as an average row has, within registers."""
    block_c = min(128, max(4, triton.next_power_of_2(channels)))
    lanes = triton.next_power_of_2(max(4, edges // max(rows, 1)))
    block_e = min(lanes, 64, 2048 // block_c)
    return {
        "BLOCK_E": block_e,
        "BLOCK_C": block_c,
        "num_warps": 1 if block_e * block_c <= 1024 else 2,
    }
