"""Types and domains of a whole program, inferred from its ops.

Types come from running each op on FakeTensors; sizes that depend on data (the number of edges
that are not self-loops) keep the symbol they were traced with.  Domains come from dataflow:

- structure: reaches from index inputs and edge-weight inputs alone, without parameters;
- edge, node, graph: the first axis is the length of an index, the rows an index selects or
  scatters into (once fused: the rows of its CSR form), or the rows that a node-long index (a
  batch vector) scatters into.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from gnnfx.ir.assume import assume
from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program, codes_of, set_record
from gnnfx.ir.types import Dim, Domain, IntType, Record, TensorType, TupleType

_INDEX_ARG = {
    "gather": "index",
    "scatter": "index",
    "edge_softmax": "index",
    "compress": "dst",
    "compress_self_loops": "dst",
    "aten.index_select.default": "index",
    "aten.scatter_add.default": "index",
    "aten.scatter_reduce.two": "index",
    "aten.index_add.default": "index",
}


def infer_value(program: Program, node: fx.Node) -> Any:
    """The fake result of `node` from the fakes of its arguments."""
    if node.op == "get_attr":
        tensor = program.tensors[str(node.target)].detach()
        return program.mode.from_tensor(tensor, static_shapes=True)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    symbols: set[sympy.Symbol] = set()
    # Layers repeat: the same op on arguments of the same types gives the same type.
    key = (node.target, _described(args, symbols), _described(kwargs, symbols))
    if key in program.inferred:
        return program.inferred[key]
    # Some compositions, such as LSTMs, have rules for symbolic sizes in Python only.
    with program.mode, torch.no_grad(), enable_python_dispatcher():
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    if isinstance(result, (Tensor, tuple)) and not effects(node):
        made: set[sympy.Symbol] = set()
        _described(result, made)
        if made <= symbols:  # a size that only the data decides is another one at each call
            program.inferred[key] = result
    return result


def _described(value: Any, symbols: set[sympy.Symbol]) -> Any:
    """All of an argument that the type of a result depends on; adds the symbols of its sizes."""
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout is torch.strided else ()
        sizes = tuple(_described(s, symbols) for s in (*value.shape, *strides))
        return type(value), value.dtype, value.device, value.layout, sizes
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        symbols |= value.node.expr.free_symbols
        return type(value), value.node.expr
    if isinstance(value, dict):
        return tuple((name, _described(v, symbols)) for name, v in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(_described(v, symbols) for v in value)
    return type(value), value


def infer_anew(program: Program, node: fx.Node) -> Any:
    """The fake result of `node`, remembered until an argument changes.

    Sizes that the graph's contents decide keep the symbols they had: running the op again would
    make new symbols for the same sizes.  A result that is like the old one is not replaced, so
    that nothing computed from it has to be inferred again.
    """
    made_from = _made_from(program, node)
    if "val" in node.meta and node.meta.get(_MADE_FROM) == made_from:
        return node.meta["val"]
    old = node.meta.get("val")
    if old is None or not keeps_traced_size(node):
        try:
            new = infer_value(program, node)
        except GuardOnDataDependentSymNode:
            if old is None:
                raise
            new = old
        same = _alike(old, new) or _renames_sizes(program, old, new)
        node.meta["val"] = old if same else new
    node.meta[_MADE_FROM] = made_from
    return node.meta["val"]


def take_as_inferred(program: Program, node: fx.Node) -> None:
    """Let the fake result that `node` comes with stand for what its arguments give."""
    node.meta[_MADE_FROM] = _made_from(program, node)


_MADE_FROM = "gnnfx_made_from"


class _Same:
    """A value that equals only itself: FakeTensors compare elementwise, which has no answer."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _made_from(program: Program, node: fx.Node) -> tuple[Any, ...]:
    """What the type of `node` was, or would be, inferred from."""
    if node.op == "get_attr":
        return node.op, node.target, _Same(program.tensors.get(str(node.target)))

    def made(value: Any) -> Any:
        return _Same(value.meta.get("val")) if isinstance(value, fx.Node) else value

    args: Any = torch.fx.node.map_aggregate((node.args, node.kwargs), made)
    return node.op, node.target, args


def _alike(old: Any, new: Any) -> bool:
    """Whether two fake tensors say the same of a value."""
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return False
    if old.dtype != new.dtype or old.device != new.device or old.dim() != new.dim():
        return False
    pairs = zip((*old.shape, *old.stride()), (*new.shape, *new.stride()), strict=True)
    return all(_number(a) == _number(b) for a, b in pairs)


def _number(size: Any) -> Any:
    """A size as a number or expression: comparing symbolic sizes would add guards on them."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _renames_sizes(program: Program, old: Any, new: Any) -> bool:
    """Whether `new` differs from `old` only in symbols that no value of the program had before."""
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or old.dtype != new.dtype:
        return False
    if old.dim() != new.dim():
        return False

    def fresh(size: Any) -> bool:
        symbols = size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()
        return bool(symbols - program.axes.keys())

    pairs = list(zip(old.shape, new.shape, strict=True))
    return any(fresh(b) for _, b in pairs) and all(str(a) == str(b) or fresh(b) for a, b in pairs)


def keeps_traced_size(node: fx.Node) -> bool:
    """Whether the result's size depends on data, so that re-running would make a new symbol."""
    if isinstance(node.target, torch._ops.OpOverload):
        tags = node.target.tags
        if torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags:
            mask = any(
                isinstance(n.meta.get("val"), Tensor) and n.meta["val"].dtype == torch.bool
                for n in node.all_input_nodes
            )
            return node.target is not torch.ops.aten.index.Tensor or mask
    return False


def effects(node: fx.Node) -> bool:
    """Whether dropping an unused call would change what the program does."""
    target = node.target
    if target is assume:
        return True
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def annotate(program: Program) -> Program:
    """Infer every type and domain anew and store the records."""
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        infer_anew(program, node)
    records(program)
    return program


def records(program: Program) -> None:
    """Store the record of every instruction, from the fakes that are there."""
    for instr in program.instrs:
        old = instr.node.meta.get("gnnfx")
        set_record(
            instr,
            Record(
                type=program.type_of(instr.fake),
                domain=Domain.OTHER,
                module=old.module if old else "",
                origin=old.origin if old else "trace",
                codes=codes_of(instr),
            ),
        )
    kinds = axis_domains(program)
    structural = structure_values(program, kinds)
    for instr in program.instrs:
        domain = _domain(instr, kinds, structural)
        if domain is not Domain.OTHER:
            old = instr.record
            set_record(instr, Record(old.type, domain, old.module, old.origin, old.codes))


def axis_domains(program: Program) -> dict[Dim, Domain]:
    """What each symbolic row count stands for, from its use by message passing."""
    kinds: dict[Dim, Domain] = {}
    for instr in program.instrs:
        if instr.op not in _INDEX_ARG or is_param(instr.arg):
            continue
        index = instr.args[_INDEX_ARG[instr.op]]
        if not index.shape or isinstance(index.shape[0], int):
            continue
        rows: Dim | None = None
        if instr.op in ("gather", "aten.index_select.default"):
            rows = instr.arg.shape[0] if instr.arg.shape else None
        elif instr.op.startswith(("scatter", "aten.scatter", "aten.index_add")):
            rows = instr.shape[0]
        elif instr.op.startswith("compress"):
            rows = _size(instr.args["num_dst"])
        pools = kinds.get(index.shape[0]) is Domain.NODE
        if not pools:
            kinds.setdefault(index.shape[0], Domain.EDGE)
        if isinstance(rows, str):
            kinds.setdefault(rows, Domain.GRAPH if pools else Domain.NODE)
    return kinds


def _size(value: Any) -> Dim | None:
    """The printable size behind an integer argument, or None for a constant."""
    type_ = value.type if isinstance(value, Instr) else None
    return type_.value if isinstance(type_, IntType) else None


def structure_values(program: Program, kinds: dict[Dim, Domain]) -> set[str]:
    """Names of the values that depend on the graph alone."""
    seeds = _index_inputs(program)
    for instr in program.inputs:
        on_edges = len(instr.shape) == 1 and kinds.get(instr.shape[0]) is Domain.EDGE
        if on_edges and instr.dtype is not None and instr.dtype.is_floating_point:
            seeds.add(instr.name)
    known: set[str] = set()
    for instr in program.instrs:
        if instr.op == "input":
            inside = instr.name in seeds or isinstance(instr.type, IntType)
        elif instr.op in ("param", "return", "kept"):
            inside = False
        elif instr.op == "aten.sym_size.int":
            inside = instr.arg.op == "input" or instr.arg.name in known
        elif instr.random:
            inside = False
        else:
            inside = all(i.name in known for i in instr.inputs)
        if inside:
            known.add(instr.name)
    return known


def _index_inputs(program: Program) -> set[str]:
    """Integer inputs from which an index of a gather or scatter is computed."""
    wanted: list[Instr] = []
    for instr in program.instrs:
        if instr.op in _INDEX_ARG and not is_param(instr.arg):
            wanted.append(instr.args[_INDEX_ARG[instr.op]])
            wanted.extend([instr.args["src"]] if instr.op.startswith("compress") else [])
        elif instr.op == "aten.index.Tensor" and not is_param(instr.arg):
            wanted.extend(i for i in instr.args["indices"] if isinstance(i, Instr))
    seen: set[str] = set()
    found: set[str] = set()
    while wanted:
        instr = wanted.pop()
        several = isinstance(instr.type, TupleType)  # of which one item is the index
        whole = instr.dtype is not None and not instr.dtype.is_floating_point
        if instr.name in seen or not (several or whole):
            continue
        seen.add(instr.name)
        if instr.op == "input":
            found.add(instr.name)
        wanted.extend(instr.inputs)
    return found


def _domain(instr: Instr, kinds: dict[Dim, Domain], structural: set[str]) -> Domain:
    if instr.op == "param":
        return Domain.PARAMETER
    if not isinstance(instr.type, TensorType):
        return Domain.SCALAR if instr.type is not None else Domain.OTHER
    if instr.name in structural:
        return Domain.STRUCTURE
    return kinds.get(instr.shape[0], Domain.OTHER) if instr.shape else Domain.SCALAR
