"""clipped_gradient: back through rounding, where a value did not end at the least or greatest code.

    dx[i] = dy[i] where scale * (qmin - zero_point) < y[i] < scale * (qmax - zero_point), else 0

with y the rounded value, so the end codes count as clipped, but not the code of zero: where it is
an end, as for outputs of a ReLU, nothing was clipped there, and a channel that rounds to zero would
never learn again.  Rows that were kept pass all.  Where x was scaled by rows before it was rounded,
so is its gradient.  Source: the clipped estimator of Degree-Quant (Tailor et al., ICLR 2021) as its
code runs, which stops gradients at zero, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import num_bytes
from gnnfx.kernels.launch import numba_impl, triton_impl
from gnnfx.kernels.quantize import (
    check_bits,
    check_kept,
    check_row_scale,
    code_range,
    fake_quantize_reference,
    fake_quantize_samples,
    of_each_row,
    scale_rows,
)


def reference(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    """float32 `grad` and `y` [rows, ...] of one shape, `kept` bool and `row_scale` float32 [rows].

    Returns float32 of the same shape.
    """
    low, high = (scale * (end - zero_point) for end in code_range(bits))
    # Half a step from the ends: a product may be off by a rounding.
    passes = (y > low + scale / 2) & (y < high - scale / 2) | (y == 0)
    if kept is not None:
        passes = passes | of_each_row(kept, y)
    return torch.where(passes, scale_rows(grad, row_scale), 0.0)


def fake(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    check_bits(bits)
    if y.dim() == 0 or grad.shape != y.shape:
        raise ValueError(f"grad must be {tuple(y.shape)} as y, got {tuple(grad.shape)}")
    check_kept(y, kept)
    check_row_scale(y, row_scale)
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def cost(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int = 8,
    kept: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Cost:
    """Three operations a value; two values are read and one is written."""
    return Cost(3 * y.numel(), num_bytes(grad, y, y, kept, row_scale))


def samples(device: str = "cpu") -> Iterator[tuple[object, ...]]:
    generator = torch.Generator().manual_seed(2)
    for args in fake_quantize_samples(device):
        y = fake_quantize_reference(*args)  # type: ignore[arg-type]
        grad = torch.randn(y.shape, generator=generator).to(device)
        _, scale, zero_point, bits, row_scale, kept = args
        yield grad, y, scale, zero_point, bits, kept, row_scale


CLIPPED_GRADIENT = register(
    OpDef(
        "clipped_gradient",
        reference,
        fake,
        cost,
        samples,
        impls=(
            numba_impl("gnnfx.kernels.quantize_numba", "clipped_gradient"),
            triton_impl("gnnfx.kernels.quantize_triton", "clipped_gradient"),
        ),
    )
)
