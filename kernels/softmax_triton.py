"""Triton code of `gnnfx.kernels.softmax`: one program a destination and block of heads."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnnfx.kernels.codes_triton import load_row_bounds, reject_strided

_TILE = 1024


@triton.jit
def _load_logits(logits_ptr, edges, live, heads, num_heads):
    """Logits [E, H]; -inf for edges of other rows, so that they weigh nothing."""
    mask = live[:, None] & (heads < num_heads)[None, :]
    places = edges[:, None] * num_heads + heads[None, :]
    return tl.where(
        live[:, None], tl.load(logits_ptr + places, mask=mask, other=0.0), -float("inf")
    )


@triton.jit
def _segment_softmax(
    logits_ptr, rowptr_ptr, out_ptr, num_heads, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr
):
    """exp(l - max) / (sum + 1e-16) over the edges of a row; logits and result are f32 [E, H]."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    start, end = load_row_bounds(rowptr_ptr, row)
    highest = tl.full((BLOCK_E, BLOCK_H), -float("inf"), dtype=tl.float32)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        logits = _load_logits(logits_ptr, edges, edges < end, heads, num_heads)
        highest = tl.maximum(highest, logits)
    peak = tl.max(highest, axis=0)[None, :]  # [1, BLOCK_H]
    total = tl.zeros((BLOCK_E, BLOCK_H), dtype=tl.float32)
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        total += tl.exp(_load_logits(logits_ptr, edges, edges < end, heads, num_heads) - peak)
    norm = tl.sum(total, axis=0)[None, :] + 1e-16
    for edge in range(start, end, BLOCK_E):
        edges = edge + tl.arange(0, BLOCK_E)
        live = edges < end
        weights = tl.exp(_load_logits(logits_ptr, edges, live, heads, num_heads) - peak)
        places = edges[:, None] * num_heads + heads[None, :]
        mask = live[:, None] & (heads < num_heads)[None, :]
        tl.store(out_ptr + places, tl.math.div_rn(weights, norm), mask=mask)


def reject_segment_softmax(logits: Tensor, rowptr: Tensor) -> str | None:
    return reject_strided(logits=logits, rowptr=rowptr)


def segment_softmax(logits: Tensor, rowptr: Tensor) -> Tensor:
    rows, edges = rowptr.shape[0] - 1, logits.shape[0]
    heads = logits.shape[1] if logits.dim() == 2 else 1
    out = torch.empty(tuple(logits.shape), dtype=torch.float32, device=logits.device)
    block_h = min(16, triton.next_power_of_2(heads))
    lanes = triton.next_power_of_2(max(8, edges // max(rows, 1)))
    _segment_softmax[(rows, triton.cdiv(heads, block_h))](
        logits,
        rowptr,
        out,
        heads,
        BLOCK_E=min(lanes, _TILE // block_h, 128),
        BLOCK_H=block_h,
        num_warps=1,
    )
    return out
