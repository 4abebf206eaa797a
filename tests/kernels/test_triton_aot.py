"""Every Triton kernel is compiled to machine code for sm_80 and sm_90, without a GPU.

The interpreter takes programs that the compiler refuses.  This file is also the script that does
the compiling, in a process of its own: there, each launch on the samples of the ops is recorded
instead of run, and variants are compiled until every type and constant of an argument was seen.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

TARGETS = (80, 90)
KERNELS = (
    "_aggregate",
    "_aggregate_edge_mlp",
    "_aggregate_many",
    "_aggregate_messages",
    "_aggregate_transposed",
    "_attend_dot",
    "_attend_gat",
    "_attend_gatv2",
    "_clipped_gradient",
    "_dequantize",
    "_edge_products",
    "_qparams",
    "_quantize",
    "_quantized_aggregate",
    "_quantized_aggregate_edge_mlp",
    "_quantized_aggregate_linear",
    "_quantized_aggregate_many",
    "_quantized_linear",
    "_range",
    "_segment_softmax",
    "_sum_products",
)
MATRIX_PRODUCTS = (
    "_quantized_linear",
    "_quantized_aggregate_linear",
    "_quantized_aggregate_edge_mlp",
)
# Of floats, with floats for a result: rounding once is better than twice.
FLOAT_PRODUCTS = ("_aggregate_edge_mlp",)
_WIDE_MOVE = re.compile(r"ld\.global\S*\.v4\.b32|cp\.async\S*\.shared\.global .*, 0x10,")
_TYPES = {
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float32: "fp32",
}

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: f"sm_{target}")
def compiled(request: pytest.FixtureRequest) -> tuple[int, dict[str, Any]]:
    """The target, and what compiling for it gave for each kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__)), str(request.param)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    if "missing" in result:
        pytest.skip(result["missing"])
    return request.param, result


@needs_triton
def test_every_kernel_is_compiled(compiled: tuple[int, dict[str, Any]]) -> None:
    assert sorted(compiled[1]) == sorted(KERNELS)


@needs_triton
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles(compiled: tuple[int, dict[str, Any]], kernel: str) -> None:
    assert compiled[1][kernel]["failures"] == []
    assert compiled[1][kernel]["variants"] > 0


@needs_triton
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k not in FLOAT_PRODUCTS])
def test_rounds_every_operation(compiled: tuple[int, dict[str, Any]], kernel: str) -> None:
    """A contracted multiply-add or an approximate division would change codes."""
    assert compiled[1][kernel]["inexact"] == []


@needs_triton
@pytest.mark.parametrize("kernel", [*MATRIX_PRODUCTS, "_quantized_aggregate"])
def test_aligned_codes_move_16_at_a_time(compiled: tuple[int, dict[str, Any]], kernel: str) -> None:
    """Else there is an address for each code, and registers do not hold them all."""
    assert compiled[1][kernel]["wide_moves"] > 0


@needs_triton
@pytest.mark.parametrize("kernel", MATRIX_PRODUCTS)
def test_int8_products_run_on_tensor_cores(
    compiled: tuple[int, dict[str, Any]], kernel: str
) -> None:
    target, result = compiled
    for products in result[kernel]["products"]:
        assert products, "a variant has no int8 matrix instruction"
    if target == 90 and kernel == "_quantized_linear":
        assert any("wgmma" in "".join(products) for products in result[kernel]["products"])


def _more_launches() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Shapes that are too large to be samples: they take the largest tiles."""
    from gnnfx.kernels.quantize import pack

    one, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
    for bits, weight_bits in ((8, 8), (8, 4), (4, 4)):
        x = pack(torch.zeros(5000, 128, dtype=torch.int8), bits)
        weight = pack(torch.zeros(256, 128, dtype=torch.int8), weight_bits)
        options = (None, None, "none", one, zero, bits, weight_bits)
        yield "quantized_linear", (x, one, zero, weight, torch.ones(256), 128, *options)
        graph = (torch.zeros(5001, dtype=torch.int32), torch.zeros(9, dtype=torch.int32))
        head = (x, one, zero, *graph, 128, one, zero, weight, torch.ones(256))
        yield "quantized_aggregate_linear", (*head, None, one, *options[1:])


class Launch(NamedTuple):
    """What a launch tells the compiler; attributes are by position."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, Any]


def _divides_by_16(value: Any) -> bool:
    """Whether Triton tells the compiler so of this argument."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def _record_launches() -> list[Launch]:
    """Every launch on the samples of the ops."""
    from triton.runtime.jit import JITFunction

    import gnnfx.kernels  # noqa: F401
    from gnnfx.ir.op import all_ops

    launches: dict[str, Launch] = {}

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: v for k, v in kwargs.items() if k not in self.arg_names}
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        types, constants, attributes = {}, {}, {}
        for place, param in enumerate(self.params):
            value = values[param.name]
            if _divides_by_16(value) and not param.is_constexpr:
                attributes[(place,)] = [["tt.divisibility", 16]]
            if isinstance(value, torch.Tensor):
                types[param.name] = "*" + _TYPES[value.dtype]
            elif isinstance(value, float):
                types[param.name] = "fp32"
            elif param.is_constexpr or value in (None, 1):
                # A launch makes a constant of None and 1 as well.
                types[param.name], constants[param.name] = "constexpr", value
            else:
                types[param.name] = "i32"
        launches[f"{self.__name__} {types} {constants}"] = Launch(
            self, types, constants, attributes, options
        )

    JITFunction.run = record
    impls = {op.name: i for op in all_ops() for i in op.impls if i.name == "triton"}
    for op in all_ops():
        for args in op.samples() if op.name in impls else ():
            if impls[op.name].reject(*args) is None:
                impls[op.name].fn(*args)
    for name, args in _more_launches():
        impls[name].fn(*args)
    return list(launches.values())


def _compile_all(target: int) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    try:
        triton.knobs.nvidia.ptxas  # noqa: B018
    except RuntimeError as error:
        return {"missing": f"kernels are not compiled here: {error}"}
    result: dict[str, Any] = {}
    seen: set[tuple[str, str, str, str]] = set()
    for kernel, types, constants, attributes, options in _record_launches():
        name = kernel.__name__
        facts = {(name, arg, types[arg], str(constants.get(arg))) for arg in types}
        # How codes are unpacked and which matrix instruction there is depend on each other.
        unpacking = [constants.get(arg) for arg in ("BITS", "WEIGHT_BITS", "BLOCK_M")]
        facts.add((name, "unpacking", "", str(unpacking)))
        if facts <= seen:
            continue
        seen |= facts
        found = result.setdefault(
            name, {"variants": 0, "wide_moves": 0, "failures": [], "inexact": [], "products": []}
        )
        try:
            source = ASTSource(kernel, types, constants, attributes)
            ptx = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
            lines = ptx.asm["ptx"].splitlines()
        except Exception as error:
            found["failures"].append(f"{constants}: {error!r} {error.__cause__!r}")
            continue
        found["variants"] += 1
        found["wide_moves"] += sum(bool(_WIDE_MOVE.search(x)) for x in lines)
        found["inexact"] += [x for x in lines if "fma.rn.f32" in x or "div.full.f32" in x]
        found["products"].append(sorted({x.split()[0] for x in lines if ".s32.s8.s8" in x}))
    return result


if __name__ == "__main__":
    print(json.dumps(_compile_all(int(sys.argv[1]))))
