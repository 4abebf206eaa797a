"""How a model is called: arguments by name, flattened to the leaves that a program takes."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gnnfx.errors import InputError
from gnnfx.frontend.sparse import SparseForm, components, is_sparse, part_names, rebuilt


@dataclass(frozen=True)
class Signature:
    """The parameters of a forward function, in order, and the values they default to.

    positional: how many of them may be given by position.
    """

    names: tuple[str, ...]
    positional: int
    defaults: dict[str, Any]
    variadic: bool

    @staticmethod
    def of(model: nn.Module) -> Signature:
        specs = inspect.signature(model.forward).parameters.values()
        named = [s for s in specs if s.kind not in (s.VAR_POSITIONAL, s.VAR_KEYWORD)]
        return Signature(
            names=tuple(s.name for s in named),
            positional=sum(s.kind is not s.KEYWORD_ONLY for s in named),
            defaults={s.name: s.default for s in named if s.default is not s.empty},
            variadic=len(named) < len(specs),
        )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, in signature order, defaults left out.

        Raises InputError for too many, unknown, doubled or missing arguments.
        """
        by_position = self.names[: self.positional]
        extra = tuple(f"args{i}" for i in range(self.positional, len(args)))
        if extra and not self.variadic:
            raise InputError(
                f"forward takes {len(by_position)} arguments {list(by_position)}, got {len(args)}"
            )
        given = dict(zip(by_position + extra, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"argument {name!r} was given twice")
            if name not in self.names and not self.variadic:
                raise InputError(f"unknown argument {name!r}; expected {list(self.names)}")
            given[name] = value
        for name in self.names:
            if name not in given and name not in self.defaults:
                raise InputError(f"argument {name!r} is missing; expected {list(self.names)}")
        return {
            name: value
            for name, value in given.items()
            if name not in self.defaults or value is not self.defaults[name]
        }


def as_call(inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of bound arguments: extra positional ones by position, the rest by name.

    Where there are extra positional arguments, all named ones come before them by position.
    """
    extra = [name for name in inputs if re.fullmatch(r"args\d+", name)]
    if not extra:
        return (), inputs
    last = max(position for position, name in enumerate(inputs) if name in extra)
    named = list(inputs.items())
    return tuple(v for _, v in named[: last + 1]), dict(named[last + 1 :])


def flatten(inputs: dict[str, Any]) -> dict[str, Any]:
    """Leaves of nested inputs under names such as `x`, `x_dict['paper']`, `x.0` or `adj.index`.

    Sparse matrices fall into their parts; an `EdgeIndex` is the tensor that it holds.
    """
    leaves: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        parts = _parts(value)
        if parts is None:
            leaves[path] = value.as_tensor() if _is_index(value) else value
            return
        for key, part in parts.items():
            walk(path + key, part)

    for name, value in inputs.items():
        walk(name, value)
    return leaves


def unflatten(
    like: dict[str, Any],
    leaves: dict[str, Any],
    matrix: Callable[[SparseForm, dict[str, Any]], Any] = rebuilt,
) -> dict[str, Any]:
    """The nested inputs of the form of `like` with other leaves, in the order of `flatten`.

    like: nested inputs, or what `form_of` leaves of them.
    matrix: makes a sparse matrix (or what stands for it) from its parts.
    """
    values = iter(leaves.values())

    def walk(value: Any) -> Any:
        if isinstance(value, SparseForm):
            return matrix(value, {name: next(values) for name in part_names(value)})
        parts = _parts(value)
        return next(values) if parts is None else _built(value, list(map(walk, parts.values())))

    return {name: walk(value) for name, value in form_of(like).items()}


def form_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Nested inputs without their tensors."""

    def form(atom: Any) -> Any:
        if isinstance(atom, SparseForm):
            return atom
        # Not None, which `Data` takes as a request to delete.
        return SparseForm.of(atom) if is_sparse(atom) else ...

    return map_atoms(form, inputs)


def map_atoms(fn: Callable[[Any], Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Nested inputs with `fn` applied to every tensor, sparse matrix and plain value."""
    return map_named_atoms(lambda path, atom: fn(atom), inputs)


def map_named_atoms(fn: Callable[[str, Any], Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """As `map_atoms`, with `fn` told the name of each atom too, as `flatten` writes it."""

    def walk(path: str, value: Any) -> Any:
        if _is_index(value):
            return fn(path, value.as_tensor())
        parts = None if is_sparse(value) else _parts(value)
        if parts is None:
            return fn(path, value)
        return _built(value, [walk(path + key, part) for key, part in parts.items()])

    return {name: walk(name, value) for name, value in inputs.items()}


def key_of(leaf: str) -> tuple[str, ...]:
    """The node type `('paper',)` or edge type that a leaf belongs to, as far as keys tell."""
    found = re.findall(r"\[([^\]]*)\]", leaf)
    return tuple(re.findall(r"'([^']*)'", found[-1])) if found else ()


def input_name(leaf: str) -> str:
    """The name of a program's input for a leaf: an identifier."""
    return re.sub(r"\W+", "_", leaf).strip("_")


def _parts(value: Any) -> dict[str, Any] | None:
    """What a container holds by how it is written after the container, or None for a leaf."""
    if is_sparse(value):
        return {f".{name}": part for name, part in components(value).items()}
    if isinstance(value, dict):
        return {_key(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {f".{i}": part for i, part in enumerate(value)}
    if _is_data(value):
        return {part: held for *_, part, held in _data_items(value)}
    return None


def _built(like: Any, parts: list[Any]) -> Any:
    """A container like `like` around other parts."""
    if isinstance(like, dict):
        return dict(zip(like, parts, strict=True))
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    if _is_data(like):
        return _built_data(like, parts)
    return list(parts) if isinstance(like, list) else tuple(parts)


def _is_data(value: Any) -> bool:
    """Whether a value is PyG's `Data`, `HeteroData` or a `Batch` of them."""
    names = {f"{t.__module__}.{t.__qualname__}" for t in type(value).__mro__}
    return bool(names & _DATA)


_DATA = {"torch_geometric.data.data.Data", "torch_geometric.data.hetero_data.HeteroData"}


def _data_items(data: Any) -> list[tuple[Any, str, str, Any]]:
    """(type or None, attribute, how it is written, value) of all that a `Data` object holds."""
    return [
        (store._key, name, f"{_key(store._key)}.{name}" if store._key else f".{name}", value)
        for store in data.stores
        for name, value in store.items()
    ]


def _built_data(like: Any, parts: list[Any]) -> Any:
    """A `Data` like `like`; counts that a batch remembers are left to be found from its tensors."""
    made = copy.copy(like)
    for remembered in ("_num_graphs", "_slice_dict", "_inc_dict"):
        vars(made).pop(remembered, None)
    for (of_type, name, *_), part in zip(_data_items(like), parts, strict=True):
        (made if of_type is None else made[of_type])[name] = part
    return made


def _is_index(value: Any) -> bool:
    """Whether a value is PyG's `EdgeIndex` or `Index`: a tensor that knows more than its data."""
    return isinstance(value, Tensor) and type(value) is not Tensor and hasattr(value, "as_tensor")


def _key(key: Any) -> str:
    """`['paper']`, or `['author','writes','paper']` of a type of edges."""
    return f"[{','.join(map(repr, key if isinstance(key, tuple) else (key,)))}]"
