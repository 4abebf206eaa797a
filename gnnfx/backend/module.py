"""The module that `gnnfx.optimize` returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnfx.backend.split import Split, split
from gnnfx.errors import InputError
from gnnfx.frontend.signature import flatten
from gnnfx.frontend.trace import Traced
from gnnfx.graph_cache import GraphCache
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump
from gnnfx.ir.types import TensorType
from gnnfx.kernels.structure import own_structure
from gnnfx.report import Report


class OptimizedModule(nn.Module):
    """Does what the model did, for graphs of any size, in eval mode.

    Called as the model was in the example; the input model is not referred to.
    report: what was done to each layer.
    """

    def __init__(self, traced: Traced, program: Program, report: Report) -> None:
        super().__init__()
        self.report = report
        self._program = program
        self._signature = traced.signature
        self._leaves = traced.leaves
        self._constants = traced.constants
        self._arguments = tuple(traced.example)
        self._out_spec = traced.out_spec
        self._split: Split = split(program)
        self._checks = tuple(_Check(leaf, i.type) for leaf, i in zip(
            traced.leaves, program.inputs, strict=True))
        self._bounds = _index_bounds(program, self._split)
        self._positions = tuple(self._position(n) for n in self._split.tensors)
        self._sizes = tuple((self._position(n), dim) for n, dim in self._split.sizes)
        self._feature = self._split.feature.module()
        self._structure = self._split.structure.module()
        self._cache = GraphCache(self._compute)
        self._handle = own_structure(self)
        self._register_state_dict_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs; raises InputError for arguments that the example had otherwise."""
        leaves = self._bind(args, kwargs)
        tensors = [leaves[i] for i in self._positions]
        sizes = [leaves[i].shape[dim] for i, dim in self._sizes]
        if torch.compiler.is_compiling():
            values = torch.ops.gnnfx.structure(tensors, sizes, self._handle)
        else:
            values = self._cache.lookup(tensors, sizes)
        return pytree.tree_unflatten(list(self._feature(*leaves, *values)), self._out_spec)

    def ir(self) -> str:
        """The optimized program as text."""
        return dump(self._program)

    def forget(self) -> None:
        """Release what was remembered of graphs seen so far."""
        self._cache.forget()

    def lookup_structure(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """What the program needs to know of one graph."""
        return self._cache.lookup(tensors, sizes)

    def fake_structure(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Empty tensors of the shapes that `lookup_structure` gives, for symbolic tracing."""
        part = self._split.structure
        known: dict[str, Any] = {}
        for instr, value in zip(part.inputs, [*tensors, *sizes], strict=True):
            shape = value.shape if isinstance(value, Tensor) else [value]
            names = instr.shape if isinstance(value, Tensor) else [instr.type.value]  # type: ignore[union-attr]
            known.update({str(n): s for n, s in zip(names, shape, strict=True)})
        device = tensors[0].device if tensors else None
        fakes = []
        for result in part.results:
            shape = [_evaluate(dim, known) for dim in result.shape]
            fakes.append(torch.empty(shape, dtype=result.dtype, device=device))
        return fakes

    def _position(self, name: str) -> int:
        return [i.name for i in self._program.inputs].index(name)

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
        known = dict(zip([n for n, _ in self._split.sizes], sizes, strict=False))
        self._verify_indices(tensors, known)
        with torch.no_grad():
            return list(self._structure(*tensors, *sizes))

    def _verify_indices(self, tensors: Sequence[Tensor], sizes: dict[str, int]) -> None:
        for name, rows_of in self._bounds.items():
            tensor = tensors[self._split.tensors.index(name)]
            if tensor.numel() == 0 or rows_of not in sizes:
                continue
            low, high = (int(v) for v in torch.aminmax(tensor))
            if low < 0 or high >= sizes[rows_of]:
                worst = low if low < 0 else high
                raise InputError(
                    f"argument {name!r} holds node {worst}; expected 0 <= node < "
                    f"{sizes[rows_of]}, the number of rows of {rows_of!r}"
                )

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModule:
        before = _device(self)
        super()._apply(fn, recurse)
        if (device := _device(self)) != before and device is not None:
            for module in (self._feature, self._structure):
                _retarget(module, device)
            self.forget()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._cache = GraphCache(self._compute)
        self._handle = own_structure(self)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_handle")}


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


def _index_bounds(program: Program, parts: Split) -> dict[str, str]:
    """For each edge-index input, the input whose rows it must stay inside."""
    rows = {str(i.shape[0]): i.name for i in reversed(program.inputs) if i.shape}
    bounds = {}
    for instr in program.inputs:
        if instr.name in parts.tensors and len(instr.shape) == 2 and instr.shape[0] == 2:
            sized = [name for name, dim in parts.sizes if dim == 0]
            for name in sized:
                if rows.get(str(_input(program, name).shape[0])) == name:
                    bounds[instr.name] = name
    return bounds


def _input(program: Program, name: str) -> Any:
    return next(i for i in program.inputs if i.name == name)


def _evaluate(dim: int | str, known: dict[str, Any]) -> Any:
    """The size that a dimension stands for; unknown axes get a fresh symbol."""
    if isinstance(dim, int):
        return dim
    expr = sympy.sympify(dim, locals={n: sympy.Symbol(n) for n in known})
    symbols = sorted(expr.free_symbols, key=str)
    for symbol in symbols:
        if str(symbol) not in known:
            known[str(symbol)] = torch.library.get_ctx().new_dynamic_size()
    return sympy.lambdify(symbols, expr, "math")(*(known[str(s)] for s in symbols))


_PREFIX = "_feature."


def _drop_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """Tensors are saved under the names that the model gave them."""
    for key in [k for k in state if k.startswith(prefix + _PREFIX)]:
        state[prefix + key.removeprefix(prefix + _PREFIX)] = state.pop(key)


def _add_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, *others: Any
) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
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
