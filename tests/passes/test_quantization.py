"""From float to integer: insert-observers, choose-qparams, fold-quantization, fuse-requantize."""

from __future__ import annotations

import pytest
import torch

from gnnfx.calibrate import calibrate
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, parse
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import PassContext
from gnnfx.passes.choose_qparams import ChooseQparams
from gnnfx.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from gnnfx.passes.fold_quantization import FoldQuantization
from gnnfx.passes.fuse_epilogue import FuseEpilogue
from gnnfx.passes.fuse_requantize import FuseRequantize
from gnnfx.passes.insert_observers import InsertObservers
from gnnfx.policy import PRESETS, Policy, Quantize
from tests.passes.rewriting import body, check_second_run, edges, rewrite

FLOAT = """\
program layer(x: f32[N, 16], rowptr: i32[N + 1], src: i32[E], c: f32[N])
  w: f32[64, 16] = param('lin.weight')
  b: f32[64] = param('lin.bias')
  v: f32[4, 64] = param('out.weight')
  i: f32[N, 1] = aten.unsqueeze.default(c, 1)
  s: f32[N, 16] = aten.mul.Tensor(x, i)
  a: f32[N, 16] = aggregate(s, rowptr, src, None, 'sum', c)  # conv.aggr
  h: f32[N, 64] = aten.linear.default(a, w, b)  # conv.lin
  r: f32[N, 64] = aten.relu.default(h)
  y: f32[N, 4] = aten.linear.default(r, v)  # out
  return (y,)
"""


def _inputs(nodes: int = 30, count: int = 120) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    rowptr, by_dst, _ = torch.ops.gnnfx.compress(*edges(nodes, count), nodes)
    x = torch.randn(nodes, 16, generator=generator)
    return x, rowptr, by_dst, torch.rand(nodes, generator=generator)


def _simulate(policy: Policy, static: bool) -> tuple[Program, PassContext]:
    ctx = PassContext(policy)
    program = InsertObservers().run(parse(FLOAT), ctx)
    if static:
        assert policy.quantize is not None
        ctx.ranges = calibrate(program, [_inputs()], policy.quantize)
    return ChooseQparams().run(program, ctx), ctx


def _fold(program: Program, ctx: PassContext) -> Program:
    for pass_ in (FoldQuantization(), FuseEpilogue(), FuseRequantize()):
        before, program = program, pass_.run(program, ctx)
        verify(program, before)
    return program


@pytest.mark.parametrize("preset", ["int8", "int4"])
@pytest.mark.parametrize("static", [True, False])
def test_integer_execution_equals_its_simulation(preset: str, static: bool) -> None:
    simulated, ctx = _simulate(PRESETS[preset], static)
    integer = _fold(simulated, ctx)
    assert {"quantized_aggregate", "quantized_linear"} <= set(body(integer))
    assert not {"aten.linear.default", "aggregate", "fake_quantize"} & set(body(integer))
    (want,), (got,) = simulated.run(*_inputs()), integer.run(*_inputs())
    # The last product is the same integer; only its float32 scaling is rounded in another order.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_with_calibration_nothing_float_lies_between_integer_ops() -> None:
    integer = _fold(*_simulate(PRESETS["int8"], static=True))
    assert body(integer).count("quantize") == 1
    produced = [i for i in integer.instrs if i.op.startswith("quantized_")]
    assert [i.dtype for i in produced] == [torch.int8, torch.int8, torch.float32]
    quantize = next(integer.find("quantize"))
    assert quantize.args["row_scale"].name == "c"
    assert parse(dump(integer)).run is not None


def test_without_calibration_the_report_says_what_it_costs() -> None:
    _, ctx = (state := _simulate(PRESETS["int8"], static=False))
    integer = _fold(*state)
    assert "choose_qparams" in body(integer)
    assert any("choose_qparams" in r.text or "no calibration" in r.text for r in ctx.remarks)


def test_int4_weights_are_packed() -> None:
    simulated, _ = _simulate(PRESETS["int4"], static=True)
    codes = simulated.tensors["lin.weight.codes"]
    assert (codes.dtype, tuple(codes.shape)) == (torch.uint8, (64, 8))


@pytest.mark.parametrize(
    ("policy", "module", "reason"),
    [
        pytest.param(Policy(Quantize(), skip=("conv.*",)), "conv.lin", "'conv.*'", id="skipped"),
        pytest.param(PRESETS["int8"], "out", "too few to win", id="float-input"),
    ],
)
def test_what_stays_float_says_why(policy: Policy, module: str, reason: str) -> None:
    text = (
        FLOAT.replace("default(r, v)", "default(x, u)")
        .replace("v: f32[4, 64] = param('out.weight')", "u: f32[4, 16] = param('out.weight')")
        .replace("return (y,)", "return (y, r)")
    )
    _, after, ctx = rewrite(InsertObservers(), text, policy)
    remarks = {r.module: r.text for r in ctx.remarks}
    assert "left in float32" in remarks[module]
    assert reason in remarks[module]
    check_second_run(EliminateCommonSubexpressions(), after)


def test_a_value_read_twice_is_observed_once() -> None:
    text = FLOAT.replace("return (y,)", "return (y, z)").replace(
        "  y: f32", "  z: f32[N, 64] = aten.linear.default(a, w)\n  y: f32"
    )
    _, after, _ = rewrite(InsertObservers(), text, PRESETS["int8"])
    assert body(after).count("observe") == 3


def test_edge_weights_get_codes_of_their_own() -> None:
    text = """\
program weighted(x: f32[N, 16], rowptr: i32[N + 1], src: i32[E], w: f32[E])
  y: f32[N, 16] = aggregate(x, rowptr, src, w)
  return (y,)
"""
    ctx = PassContext(PRESETS["int8"])
    simulated = ChooseQparams().run(InsertObservers().run(parse(text), ctx), ctx)
    integer = _fold(simulated, ctx)
    aggregate = next(integer.find("quantized_aggregate"))
    assert aggregate.args["weight"].dtype is torch.int8
    x, rowptr, src, _ = _inputs()
    inputs = (x, rowptr, src, torch.rand(src.numel()))
    torch.testing.assert_close(integer.run(*inputs), simulated.run(*inputs), rtol=1e-4, atol=1e-4)
