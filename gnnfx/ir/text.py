"""The text form of programs: `dump` and `parse` are inverses.

    program gcn(x: f32[N, 16], edge_index: i64[2, E])
      w: f32[8, 16] = param('convs.0.lin.weight')
      h: f32[N, 8] = aten.linear.default(x, w)  # convs.0.lin
      return h

One instruction a line: value and type first, then the call, then the user's module.  Tensors
appear by name and shape only: `restore` puts the given ones in their places, `parse` fills the
others with numbers drawn from the name.  Domains and quantization parameters are not written, as
they follow from the ops.  Text may come from anywhere: parsing it runs none of it.
"""

from __future__ import annotations

import ast
import keyword
import re
import zlib
from collections.abc import Mapping
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
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_LINE = re.compile(rf"((?:{_STRING}|[^'\"#])*?)(?:  # (.*))?")
_DEVICE = re.compile(rf"torch\.device\('[\w:]+'\)|{_STRING}")
# Generated code quotes the parts of a tensor's name.
_TENSOR_NAME = re.compile(r"[^\"\\\r\n]+")


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
    head = f"{instr.name}: {instr.type} = "
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
    if isinstance(value, slice):
        return f"slice({', '.join(map(_format, (value.start, value.stop, value.step)))})"
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, _TORCH_CONSTANTS):
        return str(value)
    return "..." if value is ... else repr(value)


def parse(text: str, tensors: Mapping[str, Tensor] | None = None) -> Program:
    """The program that `text` describes; raises ParseError with the line at fault.

    tensors: by name; a tensor that is not among them is made up.
    """
    return _Parser(tensors or {}, made_up=True).parse(text)


def restore(text: str, tensors: Mapping[str, Tensor]) -> Program:
    """The program that `text` describes, over exactly these tensors, in their order.

    Raises ParseError with the line at fault, or naming a tensor that no line uses.
    """
    program = _Parser(tensors, made_up=False).parse(text)
    if unused := tensors.keys() - program.tensors.keys():
        raise ParseError(f"no line uses the tensors {sorted(unused)}")
    program.tensors = dict(tensors)
    return program


def retarget(text: str, device: torch.device) -> str:
    """The text of the same program, creating its tensors on `device`."""
    constant = _format(device)
    return _DEVICE.sub(lambda m: constant if m[0].startswith("torch") else m[0], text)


class _Parser:
    def __init__(self, tensors: Mapping[str, Tensor], made_up: bool) -> None:
        self.given = tensors
        self.made_up = made_up
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self.sizes: dict[str, torch.SymInt] = {}
        self.program = Program(fx.Graph(), {}, self.mode)
        self.nodes: dict[str, fx.Node] = {}

    def parse(self, text: str) -> Program:
        lines = text.rstrip().split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                self._line(line, first=number == 1, last=number == len(lines))
            except Exception as error:
                raise ParseError(f"line {number}: {line.strip()!r}: {error}") from error
        records(self.program)
        return self.program

    def _line(self, line: str, first: bool, last: bool) -> None:
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError("a string does not end")
        code, module = match[1], match[2] or ""
        if last != code.startswith("return "):
            raise ValueError("expected the last line, and no other, to be `return value`")
        if first:
            self._header(code)
        elif last:
            self.program.graph.output(self._value(_expression(code.removeprefix("return "))))
        elif code:
            self._instr(code, module)

    def _header(self, code: str) -> None:
        match = re.fullmatch(r"program (\w+)\((.*)\)", code)
        if match is None:
            raise ValueError("expected `program name(input: type, ...)`")
        self.program.name = match[1]
        for item in _split(match[2]):
            name, _, type_ = item.partition(": ")
            self._define("placeholder", name, name, self._fake(type_))

    def _instr(self, code: str, module: str) -> None:
        match = re.fullmatch(r"(\w+): (.+?) = ([\w.]+)\((.*)\)", code)
        if match is None:
            raise ValueError("expected `name: type = op(arguments)`")
        name, type_, op, arguments = match.groups()
        value = self._fake(type_)
        if op == "param":
            key = ast.literal_eval(arguments)
            self.program.tensors[key] = self._tensor(key, value)
            self._define("get_attr", name, key, value, module=module)
            return
        call = _expression(f"f({arguments})")
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("expected one call")
        args = tuple(self._value(a) for a in call.args)
        kwargs = {str(k.arg): self._value(k.value) for k in call.keywords}
        self._define("call_function", name, op_target(op), value, args, kwargs, module)

    def _define(
        self,
        kind: str,
        name: str,
        target: Any,
        value: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        module: str = "",
    ) -> None:
        if name in self.nodes:
            raise ValueError(f"{name} is defined twice")
        node = self.program.graph.create_node(kind, target, args, kwargs, name=name)
        # The name becomes a variable of generated code, where some have a meaning already.
        if node.name != name or name == "self" or keyword.iskeyword(name):
            raise ValueError(f"a value cannot be called {name!r}")
        node.meta["val"] = value
        self.nodes[name] = node
        set_record(Instr(node), Record(None, Domain.OTHER, module, "parse"))

    def _tensor(self, key: str, like: Any) -> Tensor:
        """The tensor of that name, which must have the type of `like`."""
        if not isinstance(like, Tensor) or not _TENSOR_NAME.fullmatch(key):
            raise ValueError(f"a tensor cannot be called {key!r} or be no tensor")
        if key not in self.given:
            if not self.made_up:
                raise ValueError(f"there is no tensor {key!r}")
            return _filled(key, like)
        tensor = self.given[key]
        if tensor.dtype != like.dtype or tensor.shape != like.shape:
            raise ValueError(f"tensor {key!r} is {self.program.type_of(tensor)}")
        return tensor

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
                constant = getattr(torch, attr, None)
                if not isinstance(constant, _TORCH_CONSTANTS):
                    raise ValueError(f"torch.{attr} is no dtype, layout or memory format")
                return constant
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="torch"), attr="device"),
                args=[ast.Constant(value=str() as device)],
            ):
                return torch.device(device)
            case ast.Call(func=ast.Name(id="slice"), args=[start, stop, step]):
                return slice(self._value(start), self._value(stop), self._value(step))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._value(operand)
        return ast.literal_eval(tree)

    def _fake(self, text: str) -> Any:
        """A value of the type that is written."""
        if text.startswith("("):
            return tuple(self._fake(t) for t in _split(text[1:-1]))
        if text == "None":
            return None
        if text == "float":
            return self.env.create_unbacked_symfloat()
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
            size = self.env.create_unbacked_symint()
            torch._check(size >= 0)
            self.program.axes[size.node.expr] = name
            self.sizes[name] = size
        return self.sizes[name]


def _expression(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


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
