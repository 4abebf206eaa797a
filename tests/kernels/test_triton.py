"""Every Triton implementation in Triton's interpreter, against the reference of its op.

The interpreter runs programs one after another, so memory is poisoned and guarded: what a wrong
mask leaves unwritten, or writes outside, would otherwise not be seen.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gnnfx.kernels  # noqa: F401
from gnnfx.ir.op import Impl, OpDef, all_ops

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py runs the kernels on the GPU"),
    # numpy, which the interpreter computes with, warns about NaN and infinity; devices do not.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

IMPLS = [
    pytest.param(op, impl, id=op.name)
    for op in all_ops()
    for impl in op.impls
    if impl.name == "triton"
]
BY_NAME = {op.name: impl for op in all_ops() for impl in op.impls if impl.name == "triton"}
REFERENCE = {op.name: op.reference for op in all_ops()}
# The interpreter takes tens of milliseconds a program, and most kernels have one a row.
MOST_ROWS = 100
TILED = "quantized_aggregate_linear"


def _samples(op: OpDef) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Samples with their numbers, without the graphs that take the interpreter too long."""
    parameters = list(inspect.signature(op.reference).parameters)
    for number, args in enumerate(op.samples()):
        rowptr = dict(zip(parameters, args, strict=True)).get("rowptr")
        if rowptr is None or rowptr.shape[0] <= MOST_ROWS or op.name == TILED:
            yield number, args


@pytest.mark.parametrize(("op", "impl"), IMPLS)
def test_matches_reference(op: OpDef, impl: Impl, poisoned_empty: None, assert_same: Any) -> None:
    accepted = [(n, args) for n, args in _samples(op) if impl.reject(*args) is None]
    assert accepted, "no sample exercises this implementation"
    for number, args in accepted:
        before = [a.clone() for a in args if isinstance(a, Tensor)]
        assert_same(impl.fn(*args), op.reference(*args), f"{op.name} sample {number}")
        after = [a for a in args if isinstance(a, Tensor)]
        assert_same(after, before, f"{op.name} sample {number} changed its argument")


@pytest.mark.parametrize(("op", "impl"), IMPLS)
def test_strided_arguments_are_refused(op: OpDef, impl: Impl) -> None:
    first, *rest = next(a for a in op.samples() if min(_first(a).shape) > 1)
    several = isinstance(first, list)
    x = first[0] if several else first
    strided = torch.stack([x, x], dim=-1)[..., 0]
    given = [strided, *first[1:]] if several else strided
    assert "not contiguous" in str(impl.reject(given, *rest))


def _first(args: tuple[Any, ...]) -> Tensor:
    first: Tensor = args[0][0] if isinstance(args[0], list) else args[0]
    return first


def _hub(edges: int) -> tuple[Tensor, Tensor]:
    """Two nodes; all edges run from the second to the first."""
    rowptr = torch.tensor([0, edges, edges], dtype=torch.int32)
    return rowptr, torch.ones(edges, dtype=torch.int32)


def test_sums_beyond_int32_are_exact() -> None:
    """70,000 products of the greatest weight and the greatest distance from the zero point."""
    rowptr, src = _hub(70_000)
    x = torch.full((2, 4), 127, dtype=torch.int8)
    weight = torch.full((70_000,), 127, dtype=torch.int8)
    one, zero_point = torch.tensor(1.0), torch.tensor(-128, dtype=torch.int32)
    args = (x, one, zero_point, rowptr, src, 4, weight, one)
    out = BY_NAME["quantized_aggregate"].fn(*args)
    assert 70_000 * 127 * 255 > 2**31
    assert out[0].tolist() == [torch.tensor(70_000 * 127 * 255).float().item()] * 4
    assert out[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["aggregate", "segment_softmax", "attend_gat"])
def test_nan_is_not_lost(name: str, assert_same: Any) -> None:
    rowptr, src = torch.tensor([0, 3, 3, 5]), torch.tensor([0, 1, 2, 0, 2])
    x = torch.tensor([[1.0, 2.0], [math.nan, 3.0], [-1.0, 0.5]])
    calls: dict[str, list[tuple[Any, ...]]] = {
        "aggregate": [(x, rowptr, src, None, reduce) for reduce in ("sum", "max", "min")],
        "segment_softmax": [(x[src], rowptr)],
        "attend_gat": [(x[:, :, None], torch.zeros(3, 2), torch.zeros(3, 2), rowptr, src)],
    }
    for args in calls[name]:
        assert_same(BY_NAME[name].fn(*args), REFERENCE[name](*args), str(args[-1]))


def test_heads_beyond_the_kernel_are_refused() -> None:
    rowptr, src = _hub(1)
    x = torch.zeros(2, 1, 4097)
    assert "4097 channels" in str(BY_NAME["attend_gatv2"].reject(x, x, x[0], rowptr, src))


def test_maximum_before_a_fused_product_is_refused() -> None:
    op = next(op for op in all_ops() if op.name == TILED)
    *head, _, row_scale = next(iter(op.samples()))
    reason = BY_NAME[op.name].reject(*head, "max", row_scale)
    assert reason == "reduce=max: only sums can be taken by a matrix product"
