"""From what `torch.export` captures to a graph without in-place ops and composite views.

    t: f32[N, 8] = aten.scatter_add_.default(z, 0, i, m)
  becomes
    t: f32[N, 8] = aten.scatter_add.default(z, 0, i, m)

where z is new memory and nothing else that shares it is read afterwards; later uses of z use t.
`ExportedProgram.run_decompositions` does this in general, by capturing the program a second time,
which takes two to three times as long as the first; it is left what is not that plain.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import DispatchKey
from torch._decomp import _should_decompose_because_unsafe_op
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

_aten = torch.ops.aten
# Ops of these make new memory, but for views.
_NAMESPACES = ("aten", "gnnfx")
# Arguments that choose places; their dtype does not change that of the result.
_PLACES = ("index", "indices", "mask")


def functionalize(exported: ExportedProgram) -> ExportedProgram:
    """The same program with functional ops alone; edits `exported` where that is possible.

    Nodes that were edited have lost their "val", which has to be inferred anew.
    """
    graph = exported.graph
    writes = _Writes(graph)
    if not all(_is_plain(node, writes) for node in graph.nodes):
        return exported.run_decompositions({})  # type: ignore[no-any-return]
    sizes = _Sizes(graph)
    written = [node for node in graph.nodes if _is_write(node)]
    for node in written:
        writes.make_functional(node)
    for node in [n for n in graph.nodes if n.target in _RULES]:
        _RULES[node.target](node, sizes)
    for node in written:
        del node.meta["val"]  # its strides were those of what it wrote to
    return exported


def _is_plain(node: fx.Node, writes: _Writes) -> bool:
    """Whether `node` can stay, or can be edited without knowing more of the program."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if not isinstance(node.target, OpOverload):
        return not isinstance(node.target, HigherOrderOperator)
    if node.target in _RULES:
        return node.target not in _APPLIES or _APPLIES[node.target](node)
    if node.target._schema.is_mutable:
        return writes.are_local(node)
    if _should_decompose_because_unsafe_op(node.target):
        return False
    composite = node.target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    return not (composite and any(a.alias_info for a in node.target._schema.arguments))


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


class _Writes:
    """What shares memory with what, and which in-place ops nothing else can see."""

    def __init__(self, graph: fx.Graph) -> None:
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._memory: dict[fx.Node, fx.Node] = {}  # the node that made the memory of a value
        self._sharing: dict[fx.Node, list[fx.Node]] = {}
        self._tensor: dict[fx.Node, fx.Node] = {}  # an in-place op returns the tensor it wrote
        for node in graph.nodes:
            operand = _shares_memory_of(node)
            memory = node if operand is None else self._memory[operand]
            self._memory[node] = memory
            self._sharing.setdefault(memory, []).append(node)
            self._tensor[node] = node
            if operand is not None and _is_write(node):
                self._tensor[node] = self._tensor[operand]

    def are_local(self, node: fx.Node) -> bool:
        """Whether `node` writes new memory that is read through its own tensor alone later."""
        memory = self._memory[node]
        if not isinstance(memory.target, OpOverload) or memory.target.namespace not in _NAMESPACES:
            return False
        if _functional(node.target) is None or not _keeps_dtype(node):
            return False
        earlier = (n for n in self._sharing[memory] if self._order[n] < self._order[node])
        others = (n for n in earlier if self._tensor[n] is not self._tensor[node])
        return not any(self._later_users(other, node) for other in others)

    def make_functional(self, node: fx.Node) -> None:
        """Write nothing: later users of the tensor use the result."""
        for same in self._sharing[self._memory[node]]:
            if self._tensor[same] is self._tensor[node] and same is not node:
                for user in self._later_users(same, node):
                    user.replace_input_with(same, node)
        functional = _functional(node.target)
        assert functional is not None
        node.target = functional
        node._rename(functional._opname)

    def _later_users(self, value: fx.Node, node: fx.Node) -> list[fx.Node]:
        return [u for u in value.users if self._order.get(u, -1) > self._order[node]]


def _shares_memory_of(node: fx.Node) -> fx.Node | None:
    """The operand whose memory the result of `node` shares, or may share."""
    if node.target is operator.getitem:
        return node.args[0]  # type: ignore[return-value]
    if not isinstance(node.target, OpOverload):
        return None
    if _should_decompose_because_unsafe_op(node.target):
        return node.all_input_nodes[0]
    spec = node.target._schema.arguments
    shared = any(a.alias_info is not None for a in spec[:1])
    return node.args[0] if shared and isinstance(node.args[0], fx.Node) else None


def _functional(target: Any) -> OpOverload | None:
    """The op with the same arguments that writes to none: pow.Tensor_Scalar for pow_.Scalar."""
    first, *others = target._schema.arguments
    if first.alias_info is None or any(a.alias_info is not None for a in others):
        return None
    packet = getattr(torch.ops.aten, target._opname.removesuffix("_"), None)
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in packet.overloads() if packet is not None else ():
        found = getattr(packet, name)
        same = [(a.name, str(a.type)) for a in found._schema.arguments] == wanted
        if same and not found._schema.is_mutable and len(found._schema.returns) == 1:
            return found  # type: ignore[no-any-return]
    return None


def _keeps_dtype(node: fx.Node) -> bool:
    """Whether the functional op gives the dtype of the tensor that is written."""
    own = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    for spec, value in zip(node.target._schema.arguments, node.args, strict=False):  # type: ignore[union-attr]
        operands = value if isinstance(value, (list, tuple)) else [value]
        for operand in operands:
            other = operand.meta["val"] if isinstance(operand, fx.Node) else None
            if not isinstance(other, Tensor):
                continue
            if spec.name not in _PLACES and other.dtype != own:
                return False
            # What a mask selects is counted anew when the op is inferred again.
            if spec.name == "indices" and other.dtype == torch.bool:
                return False
    return True


class _Sizes:
    """The first value of each size: sizes are taken from there, so that few depend on features."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._first: dict[Any, tuple[fx.Node, int]] = {}
        for node in graph.nodes:
            value = node.meta.get("val")
            for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if isinstance(size, torch.SymInt):
                    self._first.setdefault(size.node.expr, (node, dim))

    def of(self, value: Tensor) -> list[Any]:
        """The sizes of a fake tensor as arguments of its users."""
        return [self._node(s) if isinstance(s, torch.SymInt) else s for s in value.shape]

    def _node(self, size: torch.SymInt) -> fx.Node:
        source, dim = self._first[size.node.expr]
        before = source.next
        while before.op == "placeholder":
            before = before.next
        with self._graph.inserting_before(before):
            node = self._graph.call_function(_aten.sym_size.int, (source, dim))
        node.meta = {**source.meta, "val": size}
        return node


def _expand_as(node: fx.Node, sizes: _Sizes) -> None:
    value, like = node.args
    node.target = _aten.expand.default
    node.args = (value, sizes.of(like.meta["val"]))  # type: ignore[union-attr]
    node._rename("expand")


def _dropout(node: fx.Node, sizes: _Sizes) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _batch_norm(node: fx.Node, sizes: _Sizes) -> None:
    x, weight, bias, mean, var, _, momentum, eps, *_ = node.args
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            _aten._native_batch_norm_legit_no_training.default,
            (x, weight, bias, mean, var, momentum, eps),
        )
        result = node.graph.call_function(operator.getitem, (norm, 0))
    norm.meta = {key: value for key, value in node.meta.items() if key != "val"}
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _has_running_stats(node: fx.Node) -> bool:
    *_, mean, var, training, _, _, _ = node.args
    return training is False and mean is not None and var is not None


# What to do with a composite op, and when it can be done.
_RULES: dict[Any, Callable[[fx.Node, _Sizes], None]] = {
    _aten.expand_as.default: _expand_as,
    _aten.dropout.default: _dropout,
    _aten.batch_norm.default: _batch_norm,
}
_APPLIES: dict[Any, Callable[[fx.Node], bool]] = {
    _aten.dropout.default: lambda node: node.args[2] is False,
    _aten.batch_norm.default: _has_running_stats,
}
