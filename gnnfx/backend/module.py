"""The module that `gnnfx.optimize` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnfx.backend.split import Split, split
from gnnfx.errors import InputError
from gnnfx.frontend.signature import flatten
from gnnfx.frontend.trace import Traced
from gnnfx.graph_cache import GraphCache
from gnnfx.ir.op import find_op
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump
from gnnfx.ir.types import IntType, TensorType, axis_names, size_of
from gnnfx.kernels.structure import own_structure
from gnnfx.report import Report


class OptimizedModule(nn.Module):
    """Does what the model did, for graphs of any size, in eval mode.

    Called as the model was in the example; the input model is not referred to.
    report: what was done to each layer.
    """

    def __init__(self, traced: Traced, program: Program, report: Report) -> None:
        super().__init__()
        parts = split(program)
        names = [i.name for i in program.inputs]
        self.report = report
        self._ir = dump(program)
        self._signature = traced.signature
        self._arguments = tuple(traced.example)
        self._constants = traced.constants
        self._out = _Immutable(traced.out_spec)
        self._checks = tuple(map(Check, traced.leaves, (i.type for i in program.inputs)))
        self._bounds = index_bounds(program, parts)
        self._tensors = tuple(names.index(n) for n in parts.tensors)
        self._sizes = tuple((names.index(n), dim) for n, dim in parts.sizes)
        self._structure_inputs = tuple(i.type for i in parts.structure.inputs)
        self._structure_results = tuple(i.type for i in parts.structure.results)
        self._feature = parts.feature.module()
        self._direct = _direct_forward(self._feature)
        self._structure = parts.structure.module()
        self._cache = GraphCache(self._compute)
        self._handle = own_structure(self)
        self._register_state_dict_hook(_drop_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs; raises InputError for arguments that the example had otherwise."""
        leaves = self._bind(args, kwargs)
        tensors = [leaves[i] for i in self._tensors]
        sizes = [leaves[i].shape[dim] for i, dim in self._sizes]
        if torch.compiler.is_compiling():
            values = torch.ops.gnnfx.structure(tensors, sizes, self._handle)
            results = self._feature(*leaves, *values)
        else:
            values = self._cache.lookup(tensors, sizes)
            run = self._direct if all(map(_is_plain, leaves)) else type(self._feature).forward
            results = run(self._feature, *leaves, *values)
        return pytree.tree_unflatten(list(results), self._out.value)

    def ir(self) -> str:
        """The optimized program as text."""
        return self._ir

    def forget(self) -> None:
        """Release what was remembered of graphs seen so far."""
        self._cache.forget()

    def lookup_structure(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """What the program needs to know of one graph."""
        return self._cache.lookup(tensors, sizes)

    def fake_structure(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Empty tensors of the shapes that `lookup_structure` gives, for symbolic tracing."""
        known: dict[str, Any] = {}
        for type_, value in zip(self._structure_inputs, [*tensors, *sizes], strict=True):
            if isinstance(type_, TensorType):
                known.update(zip(map(str, type_.shape), value.shape, strict=True))
            elif isinstance(type_, IntType):
                known[str(type_.value)] = value
        device = tensors[0].device if tensors else None
        return [
            torch.empty([_evaluate(d, known) for d in t.shape], dtype=t.dtype, device=device)
            for t in self._structure_results
            if isinstance(t, TensorType)
        ]

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        inputs = self._signature.bind(args, kwargs)
        if tuple(inputs) != self._arguments:
            raise InputError(
                f"the example was called with arguments {list(self._arguments)}, this call has "
                f"{list(inputs)}; optimize the model with an example of each way to call it"
            )
        given = flatten(inputs)
        for name, expected in self._constants.items():
            if given[name] != expected:
                raise InputError(
                    f"argument {name!r} was {expected!r} in the example, got {given[name]!r}"
                )
        return [check(given[check.leaf]) for check in self._checks]

    def _compute(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        self._verify_indices(tensors, sizes)
        with torch.no_grad():
            return list(self._structure(*tensors, *sizes))

    def _verify_indices(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
        """Every index must name a row; eager PyG would read or write outside its tensors."""
        for position, size in self._bounds:
            tensor, (rows_of, _) = tensors[position], self._sizes[size]
            if tensor.numel() == 0:
                continue
            low, high = (int(v) for v in torch.aminmax(tensor))
            if low < 0 or high >= sizes[size]:
                raise InputError(
                    f"argument {self._checks[self._tensors[position]].leaf!r} holds node "
                    f"{low if low < 0 else high}; expected 0 <= node < {sizes[size]}, the number "
                    f"of rows of {self._checks[rows_of].leaf!r}"
                )

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModule:
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (device := _device(self)) != before and device is not None:
            for module in (self._feature, self._structure):
                retarget(module, device)
            self._direct = _direct_forward(self._feature)
            self.forget()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._direct = _direct_forward(self._feature)
        self._cache = GraphCache(self._compute)
        self._handle = own_structure(self)

    def __getstate__(self) -> dict[str, Any]:
        remade = ("_direct", "_cache", "_handle")
        return {k: v for k, v in self.__dict__.items() if k not in remade}


def _is_plain(leaf: Any) -> bool:
    """Whether a value needs nothing of torch's dispatcher: no gradient, no fake or subclass."""
    return not isinstance(leaf, Tensor) or (type(leaf) is Tensor and not leaf.requires_grad)


def _direct_forward(module: fx.GraphModule) -> Callable[..., Any]:
    """The forward function of `module` with gnnfx ops called without torch's dispatcher.

    On small graphs the dispatcher would take longer than the kernels.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if (op := find_op(node.target)) is not None:
            copies[node].target = op.run
    return type(fx.GraphModule(module, graph)).forward


class _Immutable:
    """A value that copies of a module share."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Immutable:
        return self


class Check:
    """What one input must be: the dtype and the channel counts of the example."""

    def __init__(self, leaf: str, type_: Any) -> None:
        self.leaf = leaf
        self.type = type_
        tensor = isinstance(type_, TensorType)
        self.dtype = type_.dtype if tensor else None
        self.fixed = (
            [(d, size) for d, size in enumerate(type_.shape) if isinstance(size, int)]
            if tensor
            else []
        )

    def __call__(self, value: Any) -> Any:
        if self.dtype is None:
            if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
                raise InputError(f"argument {self.leaf!r} must be an int, got {value!r}")
            return value
        if not isinstance(value, Tensor):
            raise InputError(f"argument {self.leaf!r} must be {self.type}, got {value!r}")
        if value.dtype != self.dtype:
            if value.is_floating_point() or self.dtype.is_floating_point:
                raise InputError(
                    f"argument {self.leaf!r} must be {self.type}, got dtype {value.dtype}"
                )
            value = value.to(self.dtype)
        if value.dim() != len(self.type.shape) or any(value.shape[d] != s for d, s in self.fixed):
            raise InputError(
                f"argument {self.leaf!r} must be {self.type}, got shape {tuple(value.shape)}"
            )
        return value


def index_bounds(program: Program, parts: Split) -> tuple[tuple[int, int], ...]:
    """(structure tensor, structure size): which edge index must stay inside which row count."""
    by_name = {i.name: i for i in program.inputs}
    indices = [
        n
        for n, name in enumerate(parts.tensors)
        if len(by_name[name].shape) == 2 and by_name[name].shape[0] == 2
    ]
    rows = [n for n, (_, dim) in enumerate(parts.sizes) if dim == 0]
    # With rows of several kinds (bipartite graphs) the two rows of an index have bounds of their
    # own, which the program does not say; one kind of rows bounds both.
    kinds = {by_name[parts.sizes[n][0]].shape[0] for n in rows}
    return tuple((i, rows[0]) for i in indices) if len(kinds) == 1 else ()


def _evaluate(dim: int | str, known: dict[str, Any]) -> Any:
    """The size that a dimension stands for.

    A size that the graph's contents decide gets one fresh symbol for the whole expression, as
    torch can bind a symbol only where it is a size by itself.
    """
    if isinstance(dim, int):
        return dim
    if dim not in known:
        if all(name in known for name in axis_names(dim)):
            known[dim] = size_of(dim, known)
        else:
            known[dim] = torch.library.get_ctx().new_dynamic_size()
    return known[dim]


_PREFIX = "_feature."


def _drop_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """Tensors are saved under the names that the model gave them."""
    for key in [k for k in state if k.startswith(prefix + _PREFIX)]:
        state[prefix + key.removeprefix(prefix + _PREFIX)] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
        state[prefix + _PREFIX + key.removeprefix(prefix)] = state.pop(key)


def _device(module: nn.Module) -> torch.device | None:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else None


def retarget(module: fx.GraphModule, device: torch.device) -> None:
    """Create constants on another device from now on."""
    for node in module.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.update_kwarg("device", device)
    module.recompile()
