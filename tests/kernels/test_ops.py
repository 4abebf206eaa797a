"""Every registered op: torch registration, shapes, costs, gradients and all CPU implementations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401
from gnnfx.ir.op import Impl, OpDef, all_ops, find_op
from gnnfx.kernels import aggregate_linear_sum_cpu, float_linear, linear_cpu, threads
from gnnfx.kernels.csr import arguments, sample_graphs
from gnnfx.kernels.quantize import code_range, pack, sample_qparams

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


def assert_same(got: Any, expected: Any, what: str, of: float = 0.0) -> None:
    """Codes and indices are equal; floats differ by 32 roundings, as sums are reordered.

    of: the size of what was rounded on the way, if larger than the result.
    """
    for one, other in zip(as_list(got), as_list(expected), strict=True):
        finite = other[other.isfinite()].abs() if other.is_floating_point() else other
        floats = finite.numel() and other.is_floating_point()
        largest = max(of, float(finite.max())) if floats else 0.0
        torch.testing.assert_close(
            one,
            other,
            rtol=1e-5,
            atol=32 * 2**-23 * largest,
            equal_nan=True,
            msg=lambda m: f"{what}: {m}",
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


@pytest.mark.parametrize("op", [p for p in OPS if not BY_NAME[str(p.id)].sized_by_values])
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
    # Forms of a call that an own gradient leaves out come late; other ops differentiate any alike.
    chosen = op.samples() if op.gradient else itertools.islice(op.samples(), 8)
    for args in chosen:
        grads = []
        for fn in (op.torch_op, op.reference):
            given = pytree.tree_map(_with_gradient, args)
            result = fn(*given)
            out = next(o for o in pytree.tree_leaves(result) if o.is_floating_point())
            leaves = pytree.tree_leaves(given)
            wanted = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
            weights = (torch.arange(out.numel()) % 7).to(out.dtype).view(out.shape)
            grads.append(torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True))
        for got, expected in zip(*grads, strict=True):
            if expected is None:
                assert got is None
            else:
                assert_same(got, expected, describe(op, 0, args), of=6.0)


def _with_gradient(value: Any) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floats else value


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
    (
        "compress_self_loops",
        lambda: (torch.arange(19), torch.arange(19), 19),
        19,
        2 * 8 * 38 + 4 * (20 + 38),
    ),
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
        19 * 10 + 70 + 16 + 40 + CSR_BYTES + 4 * 70,
    ),
]


@pytest.mark.parametrize(("name", "make", "flops", "num_bytes"), COSTS, ids=[c[0] for c in COSTS])
def test_cost_counts_every_byte_once(
    name: str, make: Callable[[], tuple[Any, ...]], flops: int, num_bytes: int
) -> None:
    cost = BY_NAME[name].cost(*make())
    assert (cost.flops, cost.bytes) == (flops, num_bytes)


@pytest.mark.parametrize("op", OPS)
def test_gathered_bytes_are_among_all_bytes(op: OpDef) -> None:
    for number, args in enumerate(op.samples()):
        cost = op.cost(*args)
        assert 0 <= cost.gathered <= cost.bytes, describe(op, number, args)


def test_gathered_bytes_are_rows_read_by_edges() -> None:
    x, (rowptr, src) = _floats(7, 5), _graph()
    plain = BY_NAME["aggregate"].cost(x, rowptr, src)
    assert plain.gathered == 19 * 5 * 4
    own = BY_NAME["aggregate"].cost(x, rowptr, src, None, "sum", None, _floats(1))
    assert own.gathered == plain.gathered, "a node's own row is read in order"
    assert own.bytes == plain.bytes + 7 * 5 * 4 + 4


def test_an_op_is_found_by_its_torch_target() -> None:
    for op in all_ops():
        assert find_op(op.torch_op) is op


def _run_samples(name: str) -> None:
    op = BY_NAME[name]
    for number, args in enumerate(op.samples()):
        assert_same(op.torch_op(*args), op.reference(*args), describe(op, number, args))


def test_several_threads_may_call_at_once() -> None:
    names = ["compress", "quantized_aggregate", "quantize", "aggregate"]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(_run_samples, names))


@pytest.mark.parametrize("name", ["compress", "quantized_aggregate", "choose_qparams"])
def test_without_openmp(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openmp_parallel", lambda: None)
    _run_samples(name)


_LINEAR = ["quantized_linear", "quantized_linear_sum", "quantized_aggregate_linear"]


@pytest.mark.parametrize("has_int8", [True, False], ids=["onednn", "float32"])
@pytest.mark.parametrize("name", _LINEAR)
def test_linear_without_tiles(name: str, has_int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_int8 and not linear_cpu.has_exact_int8():
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr(linear_cpu, "has_vnni_tiles", lambda: False)
    monkeypatch.setattr(linear_cpu, "has_exact_int8", lambda: has_int8)
    monkeypatch.setattr(linear_cpu, "_WEIGHTS", linear_cpu._Weights())
    _run_samples(name)


@pytest.mark.parametrize("outputs", [1, 5, 16, 17, 40, 65, 80, 97, 257, 1500])
@pytest.mark.parametrize("channels", [1, 3, 8, 130, 4000])
def test_integer_linear_layers_of_any_shape(outputs: int, channels: int) -> None:
    op = BY_NAME["quantized_linear"]
    generator = torch.Generator().manual_seed(outputs + channels)

    def codes(low: int, *shape: int) -> Tensor:
        return torch.randint(low, 128, shape, generator=generator, dtype=torch.int8)

    for rows, zero_point in [(1, 0), (7, -128), (100, 127), (133, 3)]:
        x, weight = codes(-128, rows, channels), codes(-127, outputs, channels)
        x[-1], weight[0] = -128, 127
        scale = torch.rand(outputs, generator=generator)
        args = arguments(op.reference, x, *sample_qparams(0.1, zero_point, "cpu"), weight, scale,
                         channels, row_scale=torch.rand(rows, generator=generator))  # fmt: skip
        assert torch.equal(op.torch_op(*args), op.reference(*args)), (rows, zero_point)


@pytest.mark.parametrize("activation", ["none", "relu", "elu"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_large_float_linear_layers_are_made_in_parts(
    activation: str, with_residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float_linear, "_LARGE", 1000)
    monkeypatch.setattr(float_linear, "_BLOCK", 500)
    op = BY_NAME["linear"]
    x, weight, bias = torch.randn(1001, 5), torch.randn(72, 5), torch.randn(72)
    residual = torch.randn(1001, 72) if with_residual else None
    args = x, weight, bias, residual, activation
    assert_same(op.torch_op(*args), op.reference(*args), "large")


def test_rows_without_edges_are_left_out_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate_linear_sum_cpu, "_SMALL", 0)
    rows: list[int] = []
    add_rows = aggregate_linear_sum_cpu._add_rows

    def counted(total: torch.Tensor, used: torch.Tensor, *rest: Any) -> None:
        rows.append(len(used))
        add_rows(total, used, *rest)

    monkeypatch.setattr(aggregate_linear_sum_cpu, "_add_rows", counted)
    op = BY_NAME["aggregate_linear_sum"]
    for number, args in enumerate(op.samples()):
        assert_same(aggregate_linear_sum_cpu.by_rows(*args), op.reference(*args), str(number))
    assert 1 in rows, "of a hub that all edges go to"


def test_sum_of_terms_without_channels_is_zero() -> None:
    rowptr, src = _graph()
    args = [torch.ones(7, 0)], [rowptr], [src], [torch.ones(4, 0)]
    assert torch.equal(BY_NAME["aggregate_linear_sum"].torch_op(*args), torch.zeros(7, 4))


def test_sums_of_many_channels_fit_in_32_bits() -> None:
    op, channels = BY_NAME["quantized_linear"], 2**16
    x = torch.full((3, channels), -128, dtype=torch.int8)
    weight = torch.full((2, channels), 127, dtype=torch.int8)
    weight[1] = -127
    qparams = sample_qparams(1.0, 127, "cpu")
    args = arguments(op.reference, x, *qparams, weight, torch.ones(2), channels)
    assert torch.equal(op.torch_op(*args), op.reference(*args))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_stand_for_the_values_that_torch_rounds_to(bits: int) -> None:
    low, high = code_range(bits)
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        scale = 10.0 ** (seed / 2 - 5)
        qparams = sample_qparams(
            scale, int(torch.randint(low, high + 1, (), generator=generator)), "cpu"
        )
        steps = torch.randn(1000, 16, generator=generator) * high
        ties = torch.arange(-2 * high, 2 * high).view(-1, 1) + 0.5
        for x in (steps * scale, ties * scale):
            expected = torch.fake_quantize_per_tensor_affine(x, *qparams, low, high)
            rounded = BY_NAME["fake_quantize"].run(x, *qparams, bits)
            assert torch.equal(rounded, expected)


def test_an_edited_weight_is_prepared_again() -> None:
    op = BY_NAME["quantized_linear"]
    args = list(next(iter(op.samples())))
    op.torch_op(*args)
    args[3].neg_()
    assert_same(op.torch_op(*args), op.reference(*args), "after the edit")


@pytest.mark.parametrize("reduce", ["sum", "max", "min"])
def test_nan_and_infinity_reach_the_result(reduce: str) -> None:
    op = BY_NAME["aggregate"]
    rowptr, src = _graph()
    x = torch.randn(7, 20)
    x[0, :3], x[1, 3:6], x[2, 6:] = torch.nan, torch.inf, -torch.inf
    args = arguments(op.reference, x, rowptr, src, reduce=reduce, activation="relu")
    assert_same(op.torch_op(*args), op.reference(*args), reduce)


def test_edges_of_several_parts_are_sorted_as_by_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    dst = (torch.rand(300_000, generator=generator) ** 4 * 1000).long()
    src = torch.randint(1000, dst.shape, generator=generator)
    for name in ("compress", "compress_self_loops"):
        op = BY_NAME[name]
        for ids in ((src, dst), (src.int(), dst), (src, dst.int())):
            assert_same(op.torch_op(*ids, 1000), op.reference(*ids, 1000), name)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("greatest", [False, True], ids=["least", "greatest"])
def test_a_hub_of_100000_edges_does_not_overflow(bits: int, greatest: bool) -> None:
    edges, channels = 100_000, 20
    low, high = code_range(bits)
    code, zero_point = (high, low) if greatest else (low, high)
    rowptr = torch.tensor([0, edges, edges], dtype=torch.int32)
    src = torch.ones(edges, dtype=torch.int32)
    x = pack(torch.full((2, channels), code, dtype=torch.int8), bits)
    op = BY_NAME["quantized_aggregate"]
    weights = torch.full((edges,), -128, dtype=torch.int8)
    for weight in (None, weights):
        args = arguments(
            op.reference,
            x,
            *sample_qparams(1.0, zero_point, "cpu"),
            rowptr,
            src,
            channels,
            weight,
            None if weight is None else ONE,
            bits=bits,
        )
        assert op.select(*args).name == "numba"
        assert_same(op.torch_op(*args), op.reference(*args), "hub")


@pytest.mark.parametrize("name", ["aggregate", "quantized_aggregate"])
def test_rows_of_any_width_are_summed_whole(name: str) -> None:
    """Blocks of channels overlap where they do not fill a row."""
    generator = torch.Generator().manual_seed(0)
    op = BY_NAME[name]
    rows, rowptr, src = list(sample_graphs())[3]
    for channels in (*range(1, 20), 24, 31, 33, 40, 47, 63, 65, 72, 96, 127, 129, 200):
        x = torch.randint(-128, 128, (rows, channels), generator=generator).to(torch.int8)
        qparams = sample_qparams(0.1, 3, "cpu")
        coded = (x, *qparams, rowptr, src, channels)
        args = (x.float(), rowptr, src) if name == "aggregate" else coded
        assert op.select(*args).name == "numba"
        assert_same(op.torch_op(*args), op.reference(*args), f"{channels} channels")


ILLEGAL: list[tuple[str, tuple[Any, ...], str]] = [
    ("quantize", (_floats(3, 4), ONE, ZERO, 3), "bits must be one of"),
    ("quantize", (_floats(3, 4), ONE, ZERO, 8, _floats(4)), r"row_scale must be \[3\]"),
    ("dequantize", (_codes(3, 4), ONE, ZERO, 5), "5 codes of 8 bits are 5 entries"),
    ("aggregate", (_floats(7, 5), *_graph(), _floats(3)), r"weight must be \[E\]"),
    ("aggregate", (_floats(7, 5), *_graph(), None, "mul"), "reduce must be one of"),
    ("aggregate", (_floats(7, 5), _graph()[0], torch.zeros(19)), "src must be a vector of int32"),
    (
        "quantized_aggregate",
        (_codes(7, 5), ONE, ZERO, *_graph(), 5, _codes(19), ONE, "max"),
        "takes no weight",
    ),
    ("attend_gat", (_floats(7, 2, 5), _floats(7, 3), _floats(7, 2), *_graph()), "a_src must be"),
    ("quantized_linear", (_codes(7, 5), ONE, ZERO, _codes(3, 4), _floats(3), 5), "5 codes of 8"),
]


@pytest.mark.parametrize(("name", "args", "message"), ILLEGAL)
def test_illegal_arguments_are_named(name: str, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BY_NAME[name].fake(*args)
