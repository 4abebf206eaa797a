"""The text form: dump and parse are inverses on every program, and parsing runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import gnnfx
from gnnfx.errors import ParseError
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.ir.text import dump, parse, restore, retarget
from gnnfx.ir.types import IntType, axis_names, size_of
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import PassManager
from tests.bits import same_bits
from tests.models import NODE_MODELS, graph, make


def facts(program: Program) -> dict[str, tuple[Any, ...]]:
    """What records say that is not in the text."""
    records = {i.name: i.record for i in program.instrs if i.op != "return"}
    return {n: (r.type, r.domain, r.module, r.codes) for n, r in records.items()}


@pytest.mark.parametrize("policy", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", NODE_MODELS)
def test_every_program_of_every_model(
    monkeypatch: pytest.MonkeyPatch, name: str, policy: str
) -> None:
    """After each pass: the same text and records; at the end of each run of passes, same bits."""
    programs: list[tuple[Program, bool]] = []
    run = PassManager.run

    def collect(self: PassManager, program: Program, ctx: Any, **kwargs: Any) -> Program:
        made: list[Program] = []
        kwargs["after_each"] = lambda _, before, after: made.append(after)
        result = run(self, program, ctx, **kwargs)
        distinct = {id(p): p for p in [program, *made]}
        programs.extend((p, p is result) for p in distinct.values())
        return result

    monkeypatch.setattr(PassManager, "run", collect)
    data = None if policy == "fp32" else [graph(60, 240)]
    gnnfx.optimize(make(name), policy, graph(40, 160), calibration=data)
    assert len(programs) > 5
    for program, last in programs:
        text = dump(program)
        read = restore(text, program.tensors)
        assert dump(read) == text
        assert facts(read) == facts(program)
        if last:
            assert same_bits(program.run(*graph(30, 90)), read.run(*graph(30, 90)))


SKELETON = """\
program generated(x: f32[N, 6], index: i64[2, E], weight: f32[E])
  scale: f32[6] = param('layers.0.scale')
  n: int[N] = aten.sym_size.int(x, 0)
  e: int[E] = aten.sym_size.int(index, 1)
  src: i64[E] = aten.select.int(index, 0, 0)
  dst: i64[E] = aten.select.int(index, 0, 1)
  loop: bool[E] = aten.ne.Tensor(src, dst)
  return (x, n, e, src, dst, weight, scale, loop)
"""
Values = list[Instr]
FLOATS = st.one_of(st.floats(width=32), st.sampled_from([float("inf"), float("-inf"), -0.0]))
INTS = st.integers(1, 9)


DTYPES = st.sampled_from([torch.float64, torch.bfloat16, torch.int32])
REDUCES = st.sampled_from(["sum", "mean", "max", "min"])
OF_TWO = st.sampled_from(["sym.add", "sym.mul", "sym.max", "sym.min"])
WITH_NUMBER = st.sampled_from(["sym.floordiv", "sym.mod", "sym.add", "sym.sub", "sym.max"])
COMPARE = st.sampled_from(["sym.eq", "sym.lt", "sym.ge", "sym.ne"])
CPU = {"device": torch.device("cpu"), "dtype": torch.float32, "layout": torch.strided}


def of_type(values: Values, dtype: torch.dtype, *rows: str) -> Values:
    """Matrices of that type; with `rows`, vectors of that length."""
    dims = 1 if rows else 2
    found = [v for v in values if v.dtype == dtype and len(v.shape) == dims]
    return [v for v in found if not rows or v.shape == rows]


def ints(values: Values) -> Values:
    """Integers, but no truth values."""
    truth = ("sym.eq", "sym.lt", "sym.ge", "sym.ne")
    return [v for v in values if isinstance(v.type, IntType) and v.op not in truth]


Insert = Callable[..., Instr]
Draw = Callable[[st.SearchStrategy[Any]], Any]


def extend(insert: Insert, draw: Draw, values: Values) -> Instr:
    """One more instruction of a kind that fits the values that are there."""

    def pick(found: Values) -> Instr:
        return draw(st.sampled_from(found))  # type: ignore[no-any-return]

    matrices = of_type(values, torch.float32)
    on_nodes = [v for v in matrices if v.shape[0] == "N"]
    on_edges = of_type(values, torch.float32, "E")
    index = of_type(values, torch.int64, "E")
    masks = of_type(values, torch.bool, "E")
    sizes = [v for v in ints(values) if not set("-*") & set(str(v.type))]  # positive and small
    kinds: list[Callable[[], Instr]] = [
        lambda: insert("aten.relu.default", pick(on_nodes)),
        lambda: insert("aten.add.Tensor", pick(on_nodes), draw(FLOATS), alpha=draw(INTS)),
        lambda: insert("aten.clamp.default", pick(matrices), draw(FLOATS), draw(FLOATS)),
        lambda: insert("gather", pick(on_nodes), pick(index)),
        lambda: insert("scatter", pick(on_edges), pick(index), values[1], draw(REDUCES)),
        lambda: insert("aten.index.Tensor", pick(on_edges), [pick(masks)]),
        lambda: insert("aten.full.default", [pick(sizes), draw(INTS)], draw(FLOATS), **CPU),
        lambda: insert("aten._to_copy.default", pick(matrices), dtype=draw(DTYPES)),
        lambda: insert("aten.clone.default", pick(matrices), memory_format=torch.preserve_format),
        lambda: insert("aten.slice.Tensor", pick(matrices), 1, draw(INTS), 2**63 - 1, 2),
        lambda: insert("aten.cat.default", [pick(on_nodes), pick(on_nodes)], 1),
        lambda: insert("aten.max.dim", values[0], 1),
        lambda: insert(draw(OF_TWO), pick(ints(values)), pick(ints(values))),
        lambda: insert(draw(WITH_NUMBER), pick(ints(values)), draw(INTS)),
        lambda: insert(draw(COMPARE), pick(ints(values)), draw(INTS)),
        lambda: insert("sym.float", pick(ints(values))),
        lambda: insert("compress", values[3], values[4], values[1]),
    ]
    made: Instr = draw(st.sampled_from(kinds))()
    return made


@st.composite
def programs(draw: Any) -> Program:
    rewriter = Rewriter(parse(SKELETON), "generate")
    program = rewriter.program
    values = program.results

    def insert(op: str, *args: Any, **kwargs: Any) -> Instr:
        return rewriter.insert(program.output, op, *args, **kwargs)

    for _ in range(draw(st.integers(1, 12))):
        made = extend(insert, draw, values)
        if str(made.type).startswith("("):
            item = draw(st.integers(0, str(made.type).count("[") - 1))
            made = insert("getitem", made, item)
        values.append(made)
    program.output.node.args = ([v.node for v in values],)
    return rewriter.finish()


@settings(max_examples=250, deadline=None, phases=[Phase.generate])
@given(programs(), st.integers(1, 20), st.integers(0, 40), st.integers(0, 100))
def test_generated_programs(program: Program, nodes: int, count: int, seed: int) -> None:
    text = dump(program)
    read = restore(text, program.tensors)
    assert dump(read) == text
    x, index = graph(nodes, count, seed)
    inputs = (x[:, :6].contiguous(), index, torch.rand(count))
    assert same_bits(program.run(*inputs), read.run(*inputs))


LINES = {
    "slices": "  y: f32[N, 3] = getitem(x, (slice(None, None, None), slice(0, 6, 2)))",
    "ellipsis": "  y: f32[N] = getitem(x, (..., 0))",
    "none-index": "  y: f32[D0, 6] = aten.index.Tensor(x, [m, None])",
    "long-infinities": "  y: f32[N, 6] = aten.clamp.default(x, -inf, inf)",
    "nan": "  y: f32[N, 6] = aten.add.Scalar(x, nan)",
    "complex": "  y: complex64[N, 6] = aten.mul.Scalar(x, (1+2j))",
    "layout": "  y: f32[N, 6] = aten.zeros_like.default(x, layout=torch.strided, pin_memory=False)",
    "device": "  y: f32[2] = aten.zeros.default([2], device=torch.device('cuda:1'))",
    "format": "  y: f32[N, 6] = aten.clone.default(x, memory_format=torch.preserve_format)",
    "string": '  y: f32[N, 6] = observe(x, "it\'s  # no comment")  # layer  # 2',
    "tuple": "  y: (f32[N], (i64[N], None), float, int[3]) = aten.max.dim(x, 1)  # l",
    "nothing": "  y: None = aten.max.dim(x, 1)",
    "float": "  y: float = sym.truediv(n, 2)",
    "bool": "  y: int[Eq(N, 3)] = sym.eq(n, 3)",
    "not": "  y: int[N >= 3] = sym.not(n)",
    "floor": "  y: int[(N//2)] = sym.floordiv(n, 2)",
    "max": "  y: int[Max(1, N)] = sym.max(n, 1)",
    "mod": "  y: int[Mod(N, 3)] = sym.mod(n, 3)",
    "ceil": "  y: int[CeilToInt(IntTrueDiv(N, 2))] = sym.ceil(n)",
    "power": "  y: int[N**2 - 2*N] = sym.mul(n, n)",
    "choice": "  y: int[Piecewise((N, N < 3), (2*N, True))] = sym.ite(n, n, n)",
    "double": "  y: f64[2*N + 1, 6] = aten.zeros.default([3])",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_lines_round_trip(line: str) -> None:
    text = f"""\
program one(x: f32[N, 6], m: bool[N], n: int[N])
{line}
  return {{'a': y, 'b': [None, (n,)]}}
"""
    assert dump(parse(text)) == text


def test_sizes_are_evaluated() -> None:
    axes = {"N": 7, "D0": 3}
    for text, value in {
        "12": 12, "N": 7, "D0 + N": 10, "2*((N//2))": 6, "Max(1, D0, N)": 7, "Min(D0, N)": 3,
        "Mod(N, 4)": 3, "-D0 + N**2": 46, "CeilToInt(IntTrueDiv(N, 2))": 4,
        "FloorToInt(0.5*ToFloat(N))": 3, "Eq(N, 7)": True, "(D0 > 2) & (N < 3)": False,
    }.items():  # fmt: skip
        assert size_of(text, axes) == value
    assert axis_names("Max(1, N) + D0*(E1//2)") == ["D0", "E1", "N"]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "9**9**9",
        "Piecewise(N)",
        "N.real",
        "[N]",
        "M",
        "N if N else 1",
        "'a'",
        "Max(N, key=N)",
    ],
)
def test_only_expressions_over_axes_are_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size_of(text, {"N": 1})


SAFE = """\
program safe(x: f32[N, 6])
  w: f32[6] = param('lin.weight')
  y: f32[N, 6] = aten.mul.Tensor(x, w)
  return (y,)
"""
REFUSED: dict[str, tuple[str, str, str]] = {
    "namespace": ("aten.mul.Tensor(x", "prims.mul.default(x", "no op is called 'prims.mul"),
    "python": ("aten.mul.Tensor(x", "os.system(x", "no op is called 'os.system'"),
    "attribute": ("aten.mul.Tensor(x", "aten.__class__.mro(x", "no op is called"),
    "jit-save": ("aten.mul.Tensor(x", "aten.save.default(x", "no op is called 'aten.save"),
    "file": ("aten.mul.Tensor(x", "aten.from_file.default(x", "no op is called 'aten.from_file"),
    "in-place": ("aten.mul.Tensor(x", "aten.mul_.Tensor(x", "does more than compute a result"),
    "print": ("aten.mul.Tensor(x, w)", "aten._print.default('a')", "does more than compute"),
    "structure": ("aten.mul.Tensor(x", "structure(x", "no op is called 'structure'"),
    "torch-function": ("x, w", "x, torch.load", "torch.load is no dtype"),
    "call": ("x, w", "x, print(1)", "malformed node"),
    "two-calls": ("x, w)", "x)(w)", "expected one call"),
    "closed-early": ("x, w)", "x) + g(w)", "expected one call"),
    "size": ("y: f32[N, 6]", "y: f32[print(1), 6]", "is not a size"),
    "keyword": ("y", "def", "a value cannot be called 'def'"),
    "self": ("y", "self", "a value cannot be called 'self'"),
    "quote": ("'lin.weight'", "'lin.\"); print(1)#'", "a tensor cannot be called"),
    "cut-short": ("  return (y,)\n", "", "no other, to be `return value`"),
    "two-returns": ("  return (y,)\n", "  return (y,)\n  return (x,)\n", "no other, to be `ret"),
    "open-string": ("'lin.weight'", "'lin.weight", "a string does not end"),
    "other-shape": ("w: f32[6]", "w: f32[5]", "tensor 'lin.weight' is f32[6]"),
    "other-dtype": ("w: f32[6]", "w: i8[6]", "tensor 'lin.weight' is f32[6]"),
    "no-tensor": ("lin.weight", "lin.bias", "there is no tensor 'lin.bias'"),
    "unused-tensor": ("  w: f32[6] = param('lin.weight')\n", "", "w is used before"),
}


@pytest.mark.parametrize(("old", "new", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_program_may_not_hold(old: str, new: str, message: str) -> None:
    tensors = {"lin.weight": torch.rand(6)}
    assert dump(restore(SAFE, tensors)) == SAFE
    with pytest.raises(ParseError, match="line") as error:
        restore(SAFE.replace(old, new), tensors)
    assert message in str(error.value)


def test_a_tensor_that_no_line_uses_is_an_error() -> None:
    with pytest.raises(ParseError, match=r"no line uses the tensors \['other'\]"):
        restore(SAFE, {"lin.weight": torch.rand(6), "other": torch.rand(1)})


def test_retarget_changes_devices_and_nothing_else() -> None:
    text = """\
program two(x: f32[N, 6])
  o: f32[N, 6] = observe(x, "torch.device('cpu')")
  y: f32[2] = aten.zeros.default([2], device=torch.device('cpu'))
  return (y, o)
"""
    moved = retarget(text, torch.device("cuda:0"))
    assert moved == text.replace("device=torch.device('cpu')", "device=torch.device('cuda:0')")
    assert retarget(moved, torch.device("cpu")) == text


def test_integer_programs_still_verify() -> None:
    module = gnnfx.optimize(make("gcn"), "int8", graph(40, 160))
    verify(parse(module.ir()))
