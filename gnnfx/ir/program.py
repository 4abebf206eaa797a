"""Programs and instructions: the typed view of `torch.fx`.

A Program owns an `fx.Graph`, the tensors it refers to by name, and the names of its symbolic axes.
It is runnable at every stage.  An Instr is the typed view of one `fx.Node`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

import gnnfx.ir.kept  # noqa: F401  (registers the op)
from gnnfx.ir.assume import assume
from gnnfx.ir.op import OpDef, find_op, op_called
from gnnfx.ir.types import (
    Codes,
    Dim,
    Domain,
    FloatType,
    IntType,
    Record,
    TensorType,
    TupleType,
    ValueType,
)

_KEY = "gnnfx"
_PYTHON_OPS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "assume": assume,
    "sym.add": operator.add,
    "sym.sub": operator.sub,
    "sym.mul": operator.mul,
    "sym.floordiv": operator.floordiv,
    "sym.mod": operator.mod,
    "sym.neg": operator.neg,
    "sym.pow": operator.pow,
    "sym.truediv": operator.truediv,
    "sym.eq": operator.eq,
    "sym.ne": operator.ne,
    "sym.and": operator.and_,
    "sym.or": operator.or_,
    "sym.not": torch.sym_not,
    "sym.float": torch.sym_float,
    "sym.int": torch.sym_int,
    "sym.ite": torch.sym_ite,
    "sym.sum": torch.sym_sum,
    "sym.ge": operator.ge,
    "sym.le": operator.le,
    "sym.gt": operator.gt,
    "sym.lt": operator.lt,
    "sym.max": torch.sym_max,
    "sym.min": torch.sym_min,
    "sym.ceil": math.ceil,
    "sym.floor": math.floor,
    "sym.trunc": math.trunc,
}
_PYTHON_NAMES = {fn: name for name, fn in _PYTHON_OPS.items()}
_KINDS = {
    "placeholder": "input",
    "get_attr": "param",
    "output": "return",
    "call_module": "kept",
}
# The one ATen op without a mutable argument that touches files.
_FILE_OPS = ("aten.from_file.default",)


@functools.cache
def op_name(target: Any) -> str:
    """The textual name of a call target: `gather`, `aten.add.Tensor`, `getitem`, `sym.add`."""
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace == "gnnfx":
            return target._opname
        return f"{target.namespace}.{target._opname}.{target._overloadname}"
    return _PYTHON_NAMES.get(target) or f"{target.__module__}.{target.__qualname__}"


def op_target(name: str) -> Any:
    """The call target behind a textual name; raises KeyError if there is none.

    Names may come from a file, so they are looked up among ops that compute and do nothing else:
    the Python ops above, registered gnnfx ops, and ATen ops of torch's dispatcher that return a
    result, write to no argument and touch no file.
    """
    if name in _PYTHON_OPS:
        return _PYTHON_OPS[name]
    if (definition := op_called(name)) is not None:
        return definition.torch_op
    namespace, *rest = name.split(".")
    if namespace != "aten" or len(rest) != 2 or name in _FILE_OPS:
        raise KeyError(f"no op is called {name!r}")
    packet, overload = rest
    target = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    # torch.ops also finds ops of TorchScript, among them some that write files.
    if not isinstance(target, torch._ops.OpOverload) or not _is_dispatched(target):
        raise KeyError(f"no op is called {name!r}")
    if target._schema.is_mutable or not target._schema.returns:
        raise KeyError(f"op {name!r} does more than compute a result, which no program may do")
    return target


def _is_dispatched(target: torch._ops.OpOverload[..., Any]) -> bool:
    return torch._C._dispatch_has_kernel(target.name())


@dataclass(frozen=True, slots=True)
class Instr:
    """The typed view of one `fx.Node`."""

    node: fx.Node

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def op(self) -> str:
        """`input`, `param`, `return`, `kept`, or the textual name of the op that is called."""
        return _KINDS.get(self.node.op) or op_name(self.node.target)

    @property
    def definition(self) -> OpDef | None:
        """The gnnfx declaration of the op, or None for ATen and Python ops."""
        return find_op(self.node.target)

    @property
    def random(self) -> bool:
        """Whether two calls with the same arguments may differ."""
        target = self.node.target
        if not isinstance(target, torch._ops.OpOverload):
            return False
        return torch.Tag.nondeterministic_seeded in target.tags

    @property
    def args(self) -> dict[str, Any]:
        """Arguments by name, defaults filled in; values are Instr, constants or lists of both."""
        named: dict[str, Any] = {}
        if isinstance(self.node.target, torch._ops.OpOverload):
            for i, (name, default) in enumerate(_parameters(self.node.target)):
                given = self.node.args[i] if i < len(self.node.args) else default
                named[name] = self.node.kwargs.get(name, given)
        else:
            named = {str(i): a for i, a in enumerate(self.node.args)}
        return {name: _wrap(value) for name, value in named.items()}

    @property
    def arg(self) -> Any:
        """The first argument."""
        return next(iter(self.args.values()))

    @property
    def positional(self) -> list[Any]:
        """Arguments as they were given by position."""
        return [_wrap(a) for a in self.node.args]

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments as they were given by name."""
        return {k: _wrap(a) for k, a in self.node.kwargs.items()}

    @property
    def param(self) -> str:
        """Name of the tensor that a `param` instruction refers to."""
        return str(self.node.target)

    @property
    def inputs(self) -> list[Instr]:
        return [Instr(n) for n in self.node.all_input_nodes]

    @property
    def users(self) -> list[Instr]:
        return [Instr(n) for n in self.node.users]

    @property
    def record(self) -> Record:
        return self.node.meta[_KEY]  # type: ignore[no-any-return]

    @property
    def type(self) -> ValueType:
        return self.record.type

    @property
    def domain(self) -> Domain:
        return self.record.domain

    @property
    def module(self) -> str:
        return self.record.module

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Shape of a tensor value; () for anything else."""
        return self.type.shape if isinstance(self.type, TensorType) else ()

    @property
    def dtype(self) -> torch.dtype | None:
        return self.type.dtype if isinstance(self.type, TensorType) else None

    @property
    def fake(self) -> Any:
        """The FakeTensor or SymInt that carries dtype, shape and device."""
        return self.node.meta.get("val")

    def __str__(self) -> str:
        return self.name


@functools.cache
def _parameters(target: torch._ops.OpOverload[..., Any]) -> tuple[tuple[str, Any], ...]:
    """Name of each argument, and its default or None."""
    return tuple(
        (spec.name, spec.default_value if spec.has_default_value() else None)
        for spec in target._schema.arguments
    )


def _wrap(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return Instr(value)
    if isinstance(value, (list, tuple)):
        return [_wrap(v) for v in value]
    return value


def unwrap(value: Any) -> Any:
    """The fx form of an argument made of Instr, constants and lists."""
    if isinstance(value, Instr):
        return value.node
    if isinstance(value, (list, tuple)):
        return [unwrap(v) for v in value]
    return value


@dataclass
class Program:
    """A typed `fx.Graph` with its tensors.

    tensors: parameters, buffers and constants by name.
    axes: printable name of every size symbol.
    kept: submodules that run as they are, by the site of the `kept` call.
    inferred: fake results by op and arguments' types, see `gnnfx.ir.infer`; copies share them.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    mode: FakeTensorMode
    axes: dict[sympy.Symbol, str] = field(default_factory=dict)
    name: str = "program"
    kept: dict[str, torch.nn.Module] = field(default_factory=dict)
    inferred: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def instrs(self) -> list[Instr]:
        return [Instr(n) for n in self.graph.nodes]

    @property
    def inputs(self) -> list[Instr]:
        return [Instr(n) for n in self.graph.nodes if n.op == "placeholder"]

    @property
    def output(self) -> Instr:
        return Instr(self.graph.output_node())

    @property
    def results(self) -> list[Instr]:
        """Values that the program returns, in order, without those that are constants."""
        return [result for result in self.returned if isinstance(result, Instr)]

    @property
    def returned(self) -> list[Any]:
        """All that the program returns: values, and constants such as None."""
        return [_wrap(v) for v in torch.utils._pytree.tree_leaves(self.output.node.args[0])]

    def find(self, *ops: str) -> Iterator[Instr]:
        """Instructions that call one of `ops`, in program order."""
        return (i for i in self.instrs if i.op in ops)

    def tensor(self, instr: Instr) -> Tensor:
        """The tensor behind a `param` instruction."""
        return self.tensors[instr.param]

    def copy(self) -> Program:
        """An independent graph over the same tensors."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
            made = graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
            made.meta = node.meta.copy()
            copies[node] = made
        return replace(self, graph=graph, tensors=dict(self.tensors), axes=dict(self.axes))

    def to_networkx(self) -> Any:
        """A `networkx.DiGraph` of this program, see `gnnfx.ir.graph`."""
        from gnnfx.ir.graph import to_networkx

        return to_networkx(self)

    def module(self) -> fx.GraphModule:
        """A runnable module over this program's graph and tensors."""
        used = {n.target for n in self.graph.nodes if n.op == "get_attr"}
        root = torch.nn.Module()
        # Short names first: an original name is kept where a derived one starts with it.
        names = sorted((n for n in self.tensors if n in used), key=lambda n: n.count("."))
        paths = {name: attach(root, name, self.tensors[name]) for name in names}
        bare = self.copy().graph
        for node in bare.nodes:
            if node.target is torch.ops.gnnfx.kept.default:
                tensors, sizes, site, _ = node.args
                path = f"kept.{site}".replace(".", "_").replace("kept_", "kept.", 1)
                add_module(root, path, self.kept[site])
                node.op, node.target, node.args = "call_module", path, (tensors, sizes)
            if node.op == "get_attr":
                node.target = paths[node.target]
            # FakeTensors can be neither copied nor saved; records say where values are from.
            node.meta = {_KEY: node.meta[_KEY]} if _KEY in node.meta else {}
        return fx.GraphModule(root, bare, class_name=self.name)

    def run(self, *inputs: Any) -> Any:
        """Execute on real inputs, one a placeholder."""
        with torch.no_grad():
            return self.module()(*inputs)

    def values(self, *inputs: Any) -> dict[str, Any]:
        """Every value of one run on real inputs, by name, in program order."""
        keeper = _Keeper(self.module())
        with torch.no_grad():
            keeper.run(*inputs)
        return keeper.kept

    def type_of(self, value: Any) -> ValueType:
        """The printable type of a FakeTensor, SymInt or tuple of them."""
        if isinstance(value, Tensor):
            return TensorType(value.dtype, tuple(self.dim(s) for s in value.shape))
        if isinstance(value, (int, torch.SymInt, torch.SymBool)):
            return IntType(self.dim(value))
        if isinstance(value, (float, torch.SymFloat)):
            return FloatType()
        if isinstance(value, (tuple, list)):
            return TupleType(tuple(self.type_of(v) for v in value))
        return None

    def dim(self, size: Any) -> Dim:
        """A number, or an expression over axis names."""
        if not isinstance(size, (torch.SymInt, torch.SymBool)):
            return int(size)
        expr = sympy.sympify(size.node.expr)
        symbols = expr.free_symbols
        if symbols:
            return _printed(expr, tuple((s, self._axis(s)) for s in sorted(symbols, key=str)))
        return int(bool(expr)) if isinstance(size, torch.SymBool) else int(expr)

    def _axis(self, symbol: sympy.Symbol) -> str:
        if symbol not in self.axes:
            self.axes[symbol] = f"D{sum(n.startswith('D') for n in self.axes.values())}"
        return self.axes[symbol]


@functools.lru_cache(maxsize=4096)
def _printed(expr: sympy.Expr, names: tuple[tuple[sympy.Symbol, str], ...]) -> str:
    return str(expr.xreplace({symbol: sympy.Symbol(name) for symbol, name in names}))


def add_module(root: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Register `module` on `root` under a dotted path."""
    *parents, leaf = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    root.add_module(leaf, module)


def attach(root: torch.nn.Module, name: str, tensor: Tensor) -> str:
    """Register `tensor` on `root` under a dotted name, keeping parameters parameters.

    Returns the name it got: a part that is taken (a tensor cannot hold `weight.folded` beside
    `weight`) has an underscore appended.
    """
    *path, leaf = name.split(".")
    module = root
    taken: list[str] = []
    for part in path:
        while hasattr(module, part) and not isinstance(getattr(module, part), torch.nn.Module):
            part += "_"
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
        taken.append(part)
    while hasattr(module, leaf):
        leaf += "_"
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)
    return ".".join([*taken, leaf])


def set_record(instr: Instr, record: Record) -> None:
    """Store the record of `instr`; the only writer of it."""
    instr.node.meta[_KEY] = record


def codes_of(instr: Instr) -> Codes | None:
    """The quantization parameters of the codes that `instr` makes, or None if it makes none."""
    if instr.definition is None:
        return None
    args = instr.args
    if instr.op == "quantize":
        return Codes(args["bits"], args["scale"].name, args["zero_point"].name)
    if args.get("out_scale") is not None:
        return Codes(args["out_bits"], args["out_scale"].name, args["out_zero_point"].name)
    return None


class _Keeper(fx.Interpreter):
    """Keeps what each instruction gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            self.kept[n.name] = value
        return value
