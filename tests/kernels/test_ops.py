"""Every registered op: torch registration, shapes, costs, gradients and all CPU implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gnnfx.kernels  # noqa: F401
from gnnfx.ir.op import Impl, OpDef, all_ops, find_op
from gnnfx.kernels.csr import arguments, sample_graphs
from gnnfx.kernels.quantize import sample_qparams

OPS = [pytest.param(op, id=op.name) for op in all_ops()]
BY_NAME = {op.name: op for op in all_ops()}
CPU_IMPLS = [
    pytest.param(op, impl, id=f"{op.name}-{impl.name}")
    for op in all_ops()
    for impl in op.impls
    if impl.device == "cpu"
]
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def as_list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def assert_same(got: Any, expected: Any, what: str) -> None:
    """Codes and indices are equal; floats agree to 1e-5 of the largest, as sums are reordered."""
    for one, other in zip(as_list(got), as_list(expected), strict=True):
        finite = other[other.isfinite()].abs() if other.is_floating_point() else other
        largest = float(finite.max()) if finite.numel() and other.is_floating_point() else 0.0
        torch.testing.assert_close(
            one, other, rtol=1e-5, atol=1e-6 * largest, equal_nan=True, msg=lambda m: f"{what}: {m}"
        )


def describe(op: OpDef, number: int, args: tuple[Any, ...]) -> str:
    parts = [
        f"{str(a.dtype).removeprefix('torch.')}{list(a.shape)}" if isinstance(a, Tensor) else str(a)
        for a in args
    ]
    return f"{op.name} sample {number}: {', '.join(parts)}"


@pytest.mark.parametrize("op", OPS)
def test_torch_registration(op: OpDef) -> None:
    samples = list(op.samples())
    for args in samples[:: max(1, len(samples) // 2)][:3]:
        torch.library.opcheck(op.torch_op, args, test_utils=CHECKS)


@pytest.mark.parametrize("op", OPS)
def test_fake_agrees_with_reference(op: OpDef) -> None:
    for number, args in enumerate(op.samples()):
        expected, fake = as_list(op.reference(*args)), as_list(op.fake(*args))
        got = [(tuple(t.shape), t.dtype) for t in fake]
        want = [(tuple(t.shape), t.dtype) for t in expected]
        assert got == want, describe(op, number, args)
        assert all(t.is_contiguous() for t in expected), describe(op, number, args)


@pytest.mark.parametrize(("op", "impl"), CPU_IMPLS)
def test_matches_reference(op: OpDef, impl: Impl, poisoned_empty: None) -> None:
    accepted = 0
    for number, args in enumerate(op.samples()):
        if impl.reject(*args) is not None:
            continue
        accepted += 1
        before = [a.clone() for a in args if isinstance(a, Tensor)]
        assert_same(impl.fn(*args), op.reference(*args), describe(op, number, args))
        for tensor, was in zip((a for a in args if isinstance(a, Tensor)), before, strict=True):
            assert_same(tensor, was, f"{describe(op, number, args)} changed its argument")
    assert accepted, "no sample exercises this implementation"


@pytest.mark.parametrize("op", [p for p in OPS if BY_NAME[str(p.id)].differentiable])
def test_gradient_is_that_of_the_reference(op: OpDef) -> None:
    """The op's own backward against autograd through its reference."""
    for args in list(op.samples())[:8]:
        grads = []
        for fn in (op.torch_op, op.reference):
            leaves = [
                a.detach().clone().requires_grad_()
                if isinstance(a, Tensor) and a.is_floating_point()
                else a
                for a in args
            ]
            out = fn(*leaves)
            wanted = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
            weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape)
            grads.append(torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True))
        for got, expected in zip(*grads, strict=True):
            if expected is None:
                assert got is None
            else:
                assert_same(got, expected, describe(op, 0, args))


def _graph() -> tuple[Tensor, Tensor]:
    _, rowptr, src = next(sample_graphs())
    return rowptr, src  # 7 nodes, 19 edges


def _codes(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _floats(*shape: int) -> Tensor:
    return torch.ones(shape)


ONE, ZERO = sample_qparams(1.0, 0, "cpu")
CSR_BYTES = 4 * (8 + 19)
# (op, arguments, operations, bytes counted by hand)
COSTS: list[tuple[str, Callable[[], tuple[Any, ...]], int, int]] = [
    ("compress", lambda: (torch.arange(19), torch.arange(19), 19), 0, 8 * 57 + 4 * (20 + 38)),
    ("quantize", lambda: (_floats(7, 5), ONE, ZERO, 4), 4 * 35, 4 * 35 + 8 + 7 * 3),
    ("choose_qparams", lambda: (_floats(7, 5), 8, True, _floats(7)), 70, 4 * 35 + 4 * 7 + 8),
    ("dequantize", lambda: (_codes(7, 5), ONE, ZERO, 5), 70, 35 + 8 + 4 * 35),
    ("fake_quantize", lambda: (_floats(7, 5), ONE, ZERO), 210, 8 * 35 + 8),
    ("segment_softmax", lambda: (_floats(19, 2), _graph()[0]), 4 * 38, 8 * 38 + 4 * 8),
    (
        "aggregate",
        lambda: (_floats(7, 5), *_graph(), _floats(19), "sum", None, None, _floats(5)),
        2 * 19 * 5,
        4 * 19 * 5 + CSR_BYTES + 4 * 19 + 4 * 5 + 4 * 7 * 5,
    ),
    (
        "quantized_aggregate",
        lambda: arguments(
            BY_NAME["quantized_aggregate"].reference,
            *(_codes(7, 3, dtype=torch.uint8), ONE, ZERO, *_graph(), 5),
            out_scale=ONE,
            out_zero_point=ZERO,
            bits=4,
        ),
        19 * 5,
        19 * 3 + CSR_BYTES + 16 + 7 * 5,
    ),
    (
        "quantized_linear",
        lambda: (_codes(7, 5), ONE, ZERO, _codes(3, 5), _floats(3), 5, _floats(3)),
        2 * 7 * 5 * 3,
        7 * 5 + 8 + 3 * 5 + 4 * 3 + 4 * 3 + 4 * 7 * 3,
    ),
    (
        "quantized_aggregate_linear",
        lambda: (
            *(_codes(7, 5), ONE, ZERO, *_graph(), 5, ONE, ZERO),
            *(_codes(3, 5), _floats(3), _floats(7), None, _floats(3)),
        ),
        19 * 5 + 2 * 7 * 5 * 3,
        19 * 5 + CSR_BYTES + 16 + 15 + 12 + 28 + 12 + 4 * 7 * 3,
    ),
    (
        "attend_gat",
        lambda: (_floats(7, 2, 5), _floats(7, 2), _floats(7, 2), *_graph()),
        19 * 2 * (8 + 10),
        19 * 2 * (20 + 4) + 4 * 14 + CSR_BYTES + 4 * 70,
    ),
    (
        "quantized_attend_gatv2",
        lambda: (
            *(_codes(7, 2, 5), ONE, ZERO, _codes(7, 2, 5), ONE, ZERO),
            *(_floats(2, 5), *_graph()),
        ),
        19 * 2 * (6 + 30),
        19 * 10 + 70 + 40 + CSR_BYTES + 4 * 70,
    ),
]


@pytest.mark.parametrize(("name", "make", "flops", "num_bytes"), COSTS, ids=[c[0] for c in COSTS])
def test_cost_counts_every_byte_once(
    name: str, make: Callable[[], tuple[Any, ...]], flops: int, num_bytes: int
) -> None:
    cost = BY_NAME[name].cost(*make())
    assert (cost.flops, cost.bytes) == (flops, num_bytes)


def test_an_op_is_found_by_its_torch_target() -> None:
    for op in all_ops():
        assert find_op(op.torch_op) is op
