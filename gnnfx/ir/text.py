"""The text form of programs: `dump` and `parse` are inverses.

    program gcn(x: f32[N, 16], edge_index: i64[2, E])
      w: f32[8, 16] = param('convs.0.lin.weight')
      h: f32[N, 8] = aten.linear.default(x, w)  # convs.0.lin
      return h

One instruction a line: value and type first, then the call, then the user's module.  Tensors
appear by name and shape only, so parsing fills them with numbers drawn from the name.
"""

from __future__ import annotations

import ast
import re
import zlib
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from gnnfx.errors import ParseError
from gnnfx.ir.infer import records
from gnnfx.ir.program import Instr, Program, op_target, set_record
from gnnfx.ir.types import DTYPE_OF, Dim, Domain, Record, axis_names, size_of

_TORCH_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


def dump(program: Program) -> str:
    """The text of `program`; parsing it gives a program with the same text."""
    inputs = ", ".join(f"{i.name}: {i.type}" for i in program.inputs)
    lines = [f"program {program.name}({inputs})"]
    for instr in program.instrs:
        if instr.op == "return":
            lines.append(f"  {format_return(instr)}")
        elif instr.op != "input":
            lines.append(f"  {format_instr(instr)}")
    return "\n".join(lines) + "\n"


def format_instr(instr: Instr) -> str:
    """One line of the text form."""
    comment = f"  # {instr.module}" if instr.module else ""
    head = f"{instr.name}: {instr.type} = " if instr.type is not None else ""
    if instr.op == "param":
        return f"{head}param({instr.param!r}){comment}"
    parts = [_format(a) for a in instr.node.args]
    parts += [f"{k}={_format(v)}" for k, v in instr.node.kwargs.items()]
    return f"{head}{instr.op}({', '.join(parts)}){comment}"


def format_return(instr: Instr) -> str:
    """The last line of the text form."""
    return f"return {_format(instr.node.args[0])}"


def _format(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_format(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_format, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_format, value))}]"
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, _TORCH_CONSTANTS):
        return str(value)
    return repr(value)


def parse(text: str, tensors: dict[str, Tensor] | None = None) -> Program:
    """The program that `text` describes; raises ParseError with the line at fault."""
    return _Parser(tensors or {}).parse(text)


class _Parser:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.given = tensors
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self.sizes: dict[str, torch.SymInt] = {}
        self.program = Program(fx.Graph(), {}, self.mode)
        self.nodes: dict[str, fx.Node] = {}

    def parse(self, text: str) -> Program:
        for number, line in enumerate(text.rstrip().splitlines(), start=1):
            try:
                self._line(line, first=number == 1)
            except ParseError:
                raise
            except Exception as error:
                raise ParseError(f"line {number}: {line.strip()!r}: {error}") from error
        records(self.program)
        return self.program

    def _line(self, line: str, first: bool) -> None:
        code, _, module = line.strip().partition("  # ")
        if first:
            self._header(code)
        elif code.startswith("return "):
            value = self._value(ast.parse(code.removeprefix("return "), mode="eval").body)
            self.program.graph.output(value)
        elif code:
            self._instr(code, module)

    def _header(self, code: str) -> None:
        match = re.fullmatch(r"program (\w+)\((.*)\)", code)
        if match is None:
            raise ValueError("expected `program name(input: type, ...)`")
        self.program.name = match[1]
        for item in _split(match[2]):
            name, _, type_ = item.partition(": ")
            node = self.program.graph.placeholder(name)
            self._define(node, name, self._fake(type_), "")

    def _instr(self, code: str, module: str) -> None:
        match = re.fullmatch(r"(?:(\w+): (.+?) = )?([\w.]+)\((.*)\)", code)
        if match is None:
            raise ValueError("expected `name: type = op(arguments)`")
        name, type_, op, arguments = match.groups()
        if op == "param":
            key = ast.literal_eval(arguments)
            value = self._fake(type_)
            self.program.tensors[key] = self.given.get(key, _filled(key, value))
            node = self.program.graph.get_attr(key)
        else:
            call = ast.parse(f"f({arguments})", mode="eval").body
            assert isinstance(call, ast.Call)
            args = tuple(self._value(a) for a in call.args)
            kwargs = {str(k.arg): self._value(k.value) for k in call.keywords}
            node = self.program.graph.call_function(op_target(op), args, kwargs)
            value = self._fake(type_) if type_ else None
        self._define(node, name or node.name, value, module)

    def _define(self, node: fx.Node, name: str, value: Any, module: str) -> None:
        if name in self.nodes:
            raise ValueError(f"{name} is defined twice")
        node.name = name
        node.meta["val"] = value
        self.nodes[name] = node
        set_record(Instr(node), Record(None, Domain.OTHER, module, "parse"))

    def _value(self, tree: ast.expr) -> Any:
        match tree:
            case ast.Name(id="inf" | "nan" as name):
                return float(name)
            case ast.Name(id=name):
                if name not in self.nodes:
                    raise ValueError(f"{name} is used before it is defined")
                return self.nodes[name]
            case ast.List(elts=items):
                return [self._value(i) for i in items]
            case ast.Tuple(elts=items):
                return tuple(self._value(i) for i in items)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {ast.literal_eval(k): self._value(v) for k, v in pairs if k is not None}
            case ast.Attribute(value=ast.Name(id="torch"), attr=attr):
                return getattr(torch, attr)
            case ast.Call(func=ast.Attribute(attr="device"), args=[ast.Constant(value=device)]):
                return torch.device(str(device))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._value(operand)
        return ast.literal_eval(tree)

    def _fake(self, text: str) -> Any:
        text = text.strip()
        if text.startswith("("):
            return tuple(self._fake(t) for t in _split(text[1:-1]))
        if text == "None":
            return None
        match = re.fullmatch(r"(\w+)\[(.*)\]", text)
        if match is None or (match[1] not in DTYPE_OF and match[1] != "int"):
            raise ValueError(f"{text!r} is not a type")
        if match[1] == "int":
            return self._size(match[2])
        shape = [self._size(s) for s in _split(match[2])]
        with self.mode:
            return torch.empty(shape, dtype=DTYPE_OF[match[1]])

    def _size(self, text: Dim) -> Any:
        """A number, or the SymInt of an expression over axis names."""
        return size_of(text, {name: self._axis(name) for name in axis_names(text)})

    def _axis(self, name: str) -> torch.SymInt:
        """The size symbol of a named axis, made on first use."""
        if name not in self.sizes:
            env = self.mode.shape_env
            assert env is not None
            size = env.create_unbacked_symint()
            torch._check(size >= 0)
            self.program.axes[size.node.expr] = name
            self.sizes[name] = size
        return self.sizes[name]


def _split(text: str) -> list[str]:
    """Items of a comma-separated list, commas inside brackets left alone."""
    items, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            items.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*items, last] if last else items


def _filled(name: str, like: Tensor) -> Tensor:
    """Reproducible contents for a tensor of which only name and shape are known."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    shape = [int(s) for s in like.shape]
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=like.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(like.dtype)
