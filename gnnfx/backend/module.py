"""The module that `gnnfx.optimize` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnfx.backend.call import Call
from gnnfx.backend.split import split
from gnnfx.errors import AssumptionError, InputError
from gnnfx.frontend.signature import flatten
from gnnfx.graph_cache import GraphCache
from gnnfx.ir.op import find_op
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.text import dump, retarget
from gnnfx.ir.types import IntType, TensorType, axis_names, size_of, wrong_size
from gnnfx.kernels.structure import own_structure
from gnnfx.report import Report


class OptimizedModule(nn.Module):
    """Does what the model did, for graphs of any size, in eval mode.

    Called as the model was in the example; the input model is not referred to.
    report: what was done to each layer.
    call: the form of a call.
    """

    def __init__(
        self, call: Call, program: Program, report: Report, eager: nn.Module | None = None
    ) -> None:
        super().__init__()
        self._eager = eager
        # A saved tensor has no strides, and sums may round otherwise with other strides.
        dense = {name: tensor.contiguous() for name, tensor in program.tensors.items()}
        program = replace(program, tensors=dense)
        parts = split(program)
        names = [i.name for i in program.inputs]
        self.report = report
        self.call = call
        self._ir = dump(program)
        self._names = {i.name: i.param for i in program.find("param")}
        self._checks = tuple(map(_Check, call.leaves, (i.type for i in program.inputs)))
        self._types = tuple(i.type for i in program.inputs)
        self._equal, self._derived = _relations(self._types)
        self._bounds = _index_bounds(program, parts.tensors)
        self._tensors = tuple(names.index(n) for n in parts.tensors)
        sizes: list[tuple[int, int | None]] = [(names.index(n), dim) for n, dim in parts.sizes]
        # The structure of a graph is good for features of as many rows as its indices were
        # compared with, so these counts are part of what a graph is known by.
        self._sizes = tuple(dict.fromkeys([*sizes, *((b.rows, 0) for b in self._bounds)]))
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
        try:
            return self._run(args, kwargs)
        except AssumptionError:
            if self._eager is None:
                raise
            return self._eager(*args, **kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = self._bind(args, kwargs)
        tensors = [leaves[i] for i in self._tensors]
        sizes = [leaves[i] if dim is None else leaves[i].shape[dim] for i, dim in self._sizes]
        if torch.compiler.is_compiling():
            values = torch.ops.gnnfx.structure(tensors, sizes, self._handle)
            results = self._feature(*leaves, *values)
        else:
            values = self._cache.lookup(tensors, sizes)
            run = self._direct if all(map(_is_plain, leaves)) else type(self._feature).forward
            results = run(self._feature, *leaves, *values)
        return pytree.tree_unflatten(list(results), self.call.out_spec)

    def ir(self) -> str:
        """The optimized program as text."""
        return self._ir

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the program as they are now, by the names they have in `ir()`."""
        values = {str(n.target): n.name for n in self._feature.graph.nodes if n.op == "get_attr"}
        return {self._names[values[key]]: t for key, t in self._feature.state_dict().items()}

    def added(self) -> list[str]:
        """Names of the modules and tensors in this module that are not of its program."""
        names = [*self._modules, *self._parameters, *self._buffers]
        return [name for name in names if name not in ("_feature", "_structure")]

    def forget(self) -> None:
        """Release what was remembered of graphs seen so far."""
        self._cache.forget()

    def lookup_structure(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """What the program needs to know of one graph."""
        return self._cache.lookup(tensors, sizes)

    def fake_structure(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Empty tensors of the shapes that `lookup_structure` gives, for symbolic tracing."""
        known: dict[str, Any] = {}
        for type_, value in zip(self._structure_inputs, [*tensors, *sizes], strict=False):
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
        inputs = self.call.signature.bind(args, kwargs)
        if tuple(inputs) != self.call.arguments:
            raise InputError(
                f"the example was called with arguments {list(self.call.arguments)}, this call has "
                f"{list(inputs)}; optimize the model with an example of each way to call it"
            )
        given = flatten(inputs)
        for name, expected in self.call.constants.items():
            if given[name] != expected:
                raise InputError(
                    f"argument {name!r} was {expected!r} in the example, got {given[name]!r}"
                )
        leaves = [check(given[check.leaf]) for check in self._checks]
        for (i, dim), (j, other) in self._equal:
            if leaves[i].shape[dim] != leaves[j].shape[other]:
                raise InputError(
                    f"argument {self._checks[j].leaf!r} must be as long as "
                    f"{self._checks[i].leaf!r}, {leaves[i].shape[dim]} rows, got shape "
                    f"{tuple(leaves[j].shape)}"
                )
        if self._derived and (wrong := wrong_size(self._types, leaves)) is not None:
            position, size, found = wrong
            raise InputError(
                f"argument {self._checks[position].leaf!r} must be {self._types[position]}, "
                f"got {found} where {size} was expected"
            )
        return leaves

    def _compute(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        self._verify_indices(tensors, sizes)
        used = sizes[: len(self._structure_inputs) - len(tensors)]
        with torch.no_grad():
            try:
                return list(self._structure(*tensors, *used))
            except IndexError as error:
                raise InputError(f"an index of the graph is out of range: {error}") from error

    def _verify_indices(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
        """Every index must name a row; eager PyG would read or write outside its tensors."""
        for bound in self._bounds:
            tensor = tensors[bound.index] if bound.row is None else tensors[bound.index][bound.row]
            if tensor.numel() == 0:
                continue
            low, high = (int(v) for v in torch.aminmax(tensor))
            count = sizes[self._sizes.index((bound.rows, 0))]
            if low < 0 or high >= count:
                raise InputError(
                    f"argument {self._checks[self._tensors[bound.index]].leaf!r} holds node "
                    f"{low if low < 0 else high}; expected 0 <= node < {count}, the number "
                    f"of rows of {self._checks[bound.rows].leaf!r}"
                )

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModule:
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (device := _device(self)) != before and device is not None:
            for module in (self._feature, self._structure):
                _retarget(module, device)
            self._ir = retarget(self._ir, device)
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


class KeptModel(OptimizedModule):
    """A model of which nothing could be captured: it runs as it is, in eval mode."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.report = report
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs."""
        return self.model(*args, **kwargs)

    def ir(self) -> str:
        """Why there is no program."""
        return "\n".join(f"# kept as it is: {reason}" for _, reason in self.report.kept) + "\n"

    def forget(self) -> None:
        """Nothing is remembered of any graph."""

    def _apply(self, fn: Any, recurse: bool = True) -> KeptModel:
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


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


class _Check:
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


Place = tuple[int, int]


def _relations(types: Sequence[Any]) -> tuple[tuple[tuple[Place, Place], ...], bool]:
    """Dimensions of inputs that must be equal, and whether any follows from others otherwise."""
    first: dict[str, Place] = {}
    equal: list[tuple[Place, Place]] = []
    derived = False
    for position, type_ in enumerate(types):
        for dim, size in enumerate(type_.shape if isinstance(type_, TensorType) else ()):
            if isinstance(size, str) and size.isidentifier():
                place = first.setdefault(size, (position, dim))
                if place != (position, dim):
                    equal.append((place, (position, dim)))
            derived = derived or (isinstance(size, str) and not size.isidentifier())
        if isinstance(type_, IntType):
            derived = derived or not str(type_.value).isidentifier() or str(type_.value) in first
    return tuple(equal), derived


@dataclass(frozen=True)
class _Bound:
    """Entries of one index input must name a row of another input.

    index: position of the index among the structure part's tensors.
    row: which of its rows, or None for all.
    rows: the input that has as many rows as there are to point into.
    """

    index: int
    row: int | None
    rows: int


# Ops whose results are entries of their operands, or numbers that the program made itself.
_SUBSETS = frozenset(
    {
        "aten.cat.default",
        "aten.index.Tensor",
        "aten.index_select.default",
        "aten.slice.Tensor",
        "aten._to_copy.default",
        "aten.clone.default",
        "gather",
    }
)


def _index_bounds(program: Program, tensors: tuple[str, ...]) -> tuple[_Bound, ...]:
    """What the entries of each index input must stay below, read off what they index."""
    lengths: dict[Any, int] = {}
    for position, instr in enumerate(program.inputs):
        if instr.shape and isinstance(instr.shape[0], str):
            lengths.setdefault(instr.shape[0], position)
    bounds: dict[tuple[str, int | None], _Bound] = {}
    for instr in program.instrs:
        for index, size in _indexed(instr):
            for name, row in _sources(index):
                if size in lengths and name in tensors:
                    bound = _Bound(tensors.index(name), row, lengths[size])
                    bounds.setdefault((name, row), bound)
    return tuple(bounds.values())


def _indexed(instr: Instr) -> Iterator[tuple[Instr, Any]]:
    """Pairs of an index that `instr` reads with and the number of rows it reads from."""
    if instr.definition is None:
        return
    args = instr.args
    if instr.op == "gather":
        yield args["index"], (instr.arg.shape or (None,))[0]
    elif instr.op in ("compress", "scatter"):
        count = args["num_dst" if instr.op == "compress" else "num_rows"]
        if isinstance(count, Instr) and isinstance(count.type, IntType):
            yield args["dst" if instr.op == "compress" else "index"], count.type.value
    elif "src" in args:
        yield args["src"], args["x_src" if "x_src" in args else "x"].shape[0]


def _sources(index: Instr) -> Iterator[tuple[str, int | None]]:
    """The inputs, and which row of them, whose entries `index` is made of."""
    wanted: list[tuple[Instr, int | None]] = [(index, None)]
    seen: set[tuple[Instr, int | None]] = set()
    while wanted:
        instr, row = wanted.pop()
        if (instr, row) in seen or instr.dtype is None or instr.dtype.is_floating_point:
            continue
        seen.add((instr, row))
        if instr.op == "input":
            yield instr.name, row
        elif instr.op == "aten.select.int" and instr.args["dim"] == 0 and row is None:
            wanted.append((instr.arg, instr.args["index"]))
        elif instr.op == "getitem" and instr.arg.op == "compress" and instr.positional[1] == 1:
            wanted.append((instr.arg.args["src"], row))
        elif instr.op == "aten.cat.default":
            wanted.extend((part, row) for part in instr.arg)
        elif instr.op in _SUBSETS and isinstance(instr.arg, Instr):
            wanted.append((instr.arg, row))


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
    for key in [k for k in state if k.startswith(prefix) and not k.startswith(prefix + "_eager.")]:
        state[prefix + _PREFIX + key.removeprefix(prefix)] = state.pop(key)


def _device(module: nn.Module) -> torch.device | None:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else None


def _retarget(module: fx.GraphModule, device: torch.device) -> None:
    """Create constants on another device from now on."""
    for node in module.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.update_kwarg("device", device)
    module.recompile()
