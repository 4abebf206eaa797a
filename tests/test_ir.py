"""The IR: text, verifier, rewriter, pass manager."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from gnnfx.errors import ParseError, VerifyError
from gnnfx.frontend.trace import trace
from gnnfx.ir.program import Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.ir.text import dump, parse
from gnnfx.ir.types import Domain
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import Pass, PassContext, PassManager
from gnnfx.passes.canonicalize import Canonicalize
from gnnfx.passes.raise_message_passing import RaiseMessagePassing
from tests.models import NODE_MODELS, graph, make

TEXT = """\
program conv(x: f32[N, 8], edge_index: i64[2, E], weight: f32[E])
  w: f32[4, 8] = param('lin.weight')
  n: int[N] = aten.sym_size.int(x, 0)
  src: i64[E] = aten.select.int(edge_index, 0, 0)
  dst: i64[E] = aten.select.int(edge_index, 0, 1)
  d: f32[N] = scatter(weight, dst, n, 'sum')
  h: f32[N, 4] = aten.linear.default(x, w)  # conv.lin
  m: f32[E, 4] = gather(h, src)  # conv
  f: f32[E, 4] = aten.clamp.default(m, -inf, 1.5)
  c: (i32[N + 1], i32[E], i32[E]) = compress(src, dst, n)
  p: i32[N + 1] = getitem(c, 0)
  z: f32[N, 4] = aten.zeros.default([n, 4], dtype=torch.float32, device=torch.device('cpu'))
  y: f32[N, 4] = scatter(f, dst, n, 'sum')  # conv.aggr
  return (y, z, p)
"""


def test_text_round_trips() -> None:
    program = parse(TEXT)
    verify(program)
    assert dump(program) == TEXT


@pytest.mark.parametrize("name", NODE_MODELS)
def test_traced_programs_round_trip(name: str) -> None:
    program = trace(make(name)).program
    verify(program)
    assert dump(parse(dump(program))) == dump(program)
    inputs = graph(20, 50)
    with torch.no_grad():
        torch.testing.assert_close(program.run(*inputs)[0], make(name)(*inputs))


def test_domains_come_from_dataflow() -> None:
    domains = {i.name: i.domain for i in parse(TEXT).instrs}
    assert domains["x"] is domains["h"] is domains["y"] is Domain.NODE
    assert domains["m"] is domains["f"] is Domain.EDGE
    assert domains["src"] is domains["d"] is domains["weight"] is domains["p"] is Domain.STRUCTURE
    assert domains["w"] is Domain.PARAMETER
    assert domains["n"] is Domain.SCALAR


def test_a_batch_vector_makes_graph_rows() -> None:
    program = parse("""\
program pool(x: f32[N, 8], edge_index: i64[2, E], batch: i64[N], b: int[B])
  src: i64[E] = aten.select.int(edge_index, 0, 0)
  m: f32[E, 8] = gather(x, src)
  y: f32[B, 8] = scatter(x, batch, b, 'mean')
  return (y, m)
""")
    domains = {i.name: i.domain for i in program.instrs}
    assert domains["y"] is Domain.GRAPH
    assert domains["batch"] is Domain.STRUCTURE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("gather(h, src)", "gather(q, src)", "q is used before", id="undefined"),
        pytest.param("gather(h, src)", "gahter(h, src)", "no op is called", id="unknown-op"),
        pytest.param("f32[E, 4] = gather", "q32[E, 4] = gather", "is not a type", id="type"),
        pytest.param("  f: f32", "  m: f32", "m is defined twice", id="twice"),
        pytest.param("program conv(", "program conv", "expected `program", id="header"),
    ],
)
def test_parse_errors_name_the_line(old: str, new: str, message: str) -> None:
    with pytest.raises(ParseError, match="line") as error:
        parse(TEXT.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            "m: f32[E, 4]", "m: f32[E, 5]", "is recorded as f32[E, 5], but", id="wrong-width"
        ),
        pytest.param("gather(h, src)", "gather(h, x)", "does not take these arguments", id="args"),
    ],
)
def test_the_verifier_infers_every_type_anew(old: str, new: str, message: str) -> None:
    with pytest.raises(VerifyError) as error:
        verify(parse(TEXT.replace(old, new)))
    assert message in str(error.value)
    assert "(from module conv)" in str(error.value)
    assert "> m: " in str(error.value)


def test_sizes_that_data_decides_differ_between_equal_calls() -> None:
    program = parse(TEXT)
    rewriter = Rewriter(program, "test")
    at = rewriter.program.output
    by_name = {i.name: i for i in rewriter.program.instrs}
    weight, w = by_name["weight"], by_name["w"]
    negative = rewriter.insert(at, "aten.neg.default", weight)
    first, second = (rewriter.insert(at, "aten.nonzero.default", w) for w in (weight, negative))
    assert first.shape[0] != second.shape[0]
    # Where no size is new, the same call on the same types has the same type.
    assert rewriter.insert(at, "aten.t.default", w).shape == (8, 4)
    assert rewriter.insert(at, "aten.t.default", w).shape == (8, 4)
    assert rewriter.insert(at, "aten.t.default", by_name["h"]).shape == (4, "N")


def test_the_verifier_keeps_codes_with_their_scale() -> None:
    text = """\
program codes(x: f32[N, 8], s: f32[], z: i32[], t: f32[])
  q: i8[N, 8] = quantize(x, s, z)
  y: f32[N, 8] = dequantize(q, t, z, 8)
  return (y,)
"""
    with pytest.raises(VerifyError, match="reads codes made with"):
        verify(parse(text))
    verify(parse(text.replace("dequantize(q, t", "dequantize(q, s")))


def test_a_rewriter_without_edits_gives_the_program_back() -> None:
    program = parse(TEXT)
    assert Rewriter(program, "test").finish() is program


class _Break(Pass):
    name: ClassVar[str] = "break"

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        y, _, p = rewriter.program.results
        rewriter.replace(y, rewriter.insert(rewriter.program.output, "aten.neg.default", p))
        return rewriter.finish()


def test_the_pass_manager_checks_order_and_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="raise-message-passing needs"):
        PassManager([RaiseMessagePassing()])
    with pytest.raises(VerifyError, match="the results changed"):
        PassManager([_Break()]).run(parse(TEXT), PassContext())
    manager = PassManager([Canonicalize(), RaiseMessagePassing()])
    manager.run(parse(TEXT), PassContext(), dump_to=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00-canonicalize.txt", "01-raise-message-passing.txt"]
    assert dump(parse((tmp_path / names[0]).read_text())) == (tmp_path / names[0]).read_text()


def test_constants_among_the_results_keep_their_places() -> None:
    text = "program p(x: f32[N, 8])\n  y: f32[N, 8] = aten.relu.default(x)\n  return (None, y)\n"
    program = parse(text)
    assert [result.name for result in program.results] == ["y"]
    assert [str(result) for result in program.returned] == ["None", "y"]
