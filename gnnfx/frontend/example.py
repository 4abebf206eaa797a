"""Example inputs: made from a forward signature, or resized to the sizes that tracing wants.

Tracing must see no coincidences: sizes that merely happen to be equal (as many nodes as edges,
a graph of one node) would be taken for constants.  So every trace runs on a graph whose node,
edge and other row counts are distinct and differ from all channel counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn

from gnnfx.errors import InputError
from gnnfx.frontend.hops import resized_counts
from gnnfx.frontend.signature import key_of, map_atoms, map_named_atoms
from gnnfx.frontend.sparse import is_sparse, resized

Sizes = dict[str, tuple[int, ...]]
# Kind of rows, their number, and the node or edge type that they belong to.
Group = tuple[str, int, tuple[str, ...]]

_ODD = (11, 13, 17, 19, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89)
TRACE_SIZES: Sizes = {
    "rows": (23, *_ODD),
    "edges": (97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173),
    "ptr": (7, 8, 9, 10, 12, 14),
}
CHECK_SIZES: Sizes = {
    "rows": (9, 7, 10, 12, 14, 15, 16, 18, 20, 21, 22, 24, 25, 26, 27, 28, 30, 32, 33, 34),
    "edges": (40, 39, 38, 36, 35, 44, 45, 46, 48, 49, 50, 51, 52, 54, 55, 56, 57, 58, 60, 62),
    "ptr": (5, 6, 3, 4),
}


def is_edge_index(value: Any) -> bool:
    """Whether a value looks like an edge index: integers [2, E]."""
    return (
        isinstance(value, Tensor)
        and value.dim() == 2
        and value.shape[0] == 2
        and value.dtype in (torch.int64, torch.int32)
    )


def make_example(model: nn.Module) -> dict[str, Any]:
    """Inputs by parameter name, from what `forward` requires and the channels `model` declares.

    Raises InputError if a required argument is none that gnnfx knows how to make.
    """
    makers = _makers(model)
    inputs: dict[str, Any] = {}
    for name, spec in inspect.signature(model.forward).parameters.items():
        if spec.kind in (spec.VAR_POSITIONAL, spec.VAR_KEYWORD):
            if not inputs:
                raise InputError(_cannot_make(model, f"*{name}"))
            continue
        if spec.default is not spec.empty and name != "edge_index":
            continue
        if name not in makers:
            raise InputError(_cannot_make(model, name))
        inputs[name] = makers[name]()
    return inputs


def _makers(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    nodes, edges = TRACE_SIZES["rows"][0], TRACE_SIZES["edges"][0]
    generator = torch.Generator().manual_seed(0)
    tensor = next(iter(model.parameters()), torch.empty(0))

    def floats(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        return values.to(device=tensor.device, dtype=tensor.dtype)

    def ids(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator).to(tensor.device)

    return {
        "x": lambda: floats(nodes, _in_channels(model)),
        "edge_index": lambda: ids(nodes, 2, edges),
        "edge_weight": lambda: floats(edges).abs(),
        "batch": lambda: ids(3, nodes).sort().values,
        "pos": lambda: floats(nodes, 3),
    }


def _in_channels(model: nn.Module) -> int:
    for module in model.modules():
        for attribute in ("in_channels", "in_features"):
            channels = getattr(module, attribute, None)
            if isinstance(channels, int) and channels > 0:
                return channels
    raise InputError(_cannot_make(model, "x"))


def _cannot_make(model: nn.Module, name: str) -> str:
    return (
        f"example_inputs: cannot make argument {name!r} of {type(model).__name__}.forward; "
        f"expected example_inputs=(...) or example_kwargs={{...}} with one example of each "
        f"argument you will pass"
    )


def resize(inputs: dict[str, Any], sizes: Sizes, *, apart: bool = True) -> dict[str, Any]:
    """The same kinds of inputs with other row counts, taken from `sizes`.

    Dimensions of one size stay of one size; with `apart`, edges are told from rows of equal number
    by their form, and rows of one type from those of another.  Indices are brought into range;
    integers that equal a row count follow it, and so do lists of them that add up to one.
    """
    named: list[tuple[str, Any]] = []
    map_named_atoms(lambda path, atom: named.append((path, atom)), inputs)
    atoms = [atom for _, atom in named]
    dims = _varying(atoms, [key_of(path) if apart else () for path, _ in named], apart)
    new = _new_sizes(atoms, dims, sizes, least=resized_counts(named, {}).least)
    rows = {size: new_size for (kind, size, _), new_size in new.items() if kind == "rows"}
    ends = {size - 1: new_size - 1 for (kind, size, _), new_size in new.items() if kind == "ptr"}
    counts = resized_counts(named, {group[1:]: size for group, size in new.items()})
    highest = min([*rows.values(), *counts.seeds], default=None)
    varying, numbers = iter(dims), iter(counts.values)

    def resized_atom(atom: Any) -> Any:
        keys, count = next(varying), next(numbers)
        if count is not None:
            return count
        if is_sparse(atom):
            cols = new[keys[1]] if 1 in keys else atom.shape[1]
            return resized(atom, new[keys[0]], cols, new[keys[2]])
        if isinstance(atom, int) and not isinstance(atom, bool):
            return {**ends, **rows}.get(atom, atom)
        for dim, key in keys.items():
            if key[0] == "ptr":
                return _resized_ptr(atom, new[key], rows)
            return _in_range(_pick(atom, dim, new[key]), highest)
        return atom

    return map_atoms(resized_atom, inputs)


def _new_sizes(
    atoms: list[Any], dims: list[dict[int, Group]], sizes: Sizes, least: int
) -> dict[Group, int]:
    """A size for each group, at least `least`, none that a dimension of fixed size has."""
    fixed = {
        size
        for atom, varying in zip(atoms, dims, strict=True)
        if isinstance(atom, Tensor)
        for dim, size in enumerate(atom.shape)
        if dim not in varying
    }
    fixed |= {n for kind in sizes for n in sizes[kind] if n < least and kind != "ptr"}
    free = {kind: (n for n in chain(sizes[kind], count(200)) if n not in fixed) for kind in sizes}
    groups = dict.fromkeys(group for varying in dims for group in varying.values())
    return {group: next(free[group[0]]) for group in groups}


def _varying(atoms: list[Any], keys: list[tuple[str, ...]], apart: bool) -> list[dict[int, Group]]:
    """The dimensions of each input that vary between graphs, with the group they belong to.

    keys: the node or edge type of each input, as far as known.
    """
    types = _types(atoms, keys)
    indices = [a for a in atoms if is_edge_index(a)]
    edges = {a.shape[1] for a in indices} if apart else set()
    plain = [a for a in atoms if _is_plain(a) and a.dim() > 0 and not is_edge_index(a)]
    nodes = next((a.shape[0] for a in plain if a.dim() > 1), None)
    rows = {a.shape[0] for a in plain if a.shape[0] == nodes or a.shape[0] not in edges}
    dims: list[dict[int, Group]] = []
    for atom, type_ in zip(atoms, types, strict=True):
        if is_sparse(atom):
            # Beside an edge index a sparse matrix holds features: its columns are channels.
            lines = atom.shape[:1] if indices else atom.shape[:2]
            # PyG's adjacency matrices are transposed: a row for each destination.
            ends = ((type_[-1],), (type_[0],)) if len(type_) == 3 else ((), ())
            sizes: dict[int, Group] = {
                dim: ("rows", size, ends[dim]) for dim, size in enumerate(lines)
            }
            dims.append({**sizes, 2: ("edges", atom._nnz(), type_)})
        elif is_edge_index(atom):
            dims.append({1: ("edges" if apart else "rows", atom.shape[1], type_)})
        elif not isinstance(atom, Tensor) or atom.dim() == 0:
            dims.append({})
        elif atom.shape[0] not in edges and _is_ptr(atom, rows):
            dims.append({0: ("ptr", atom.shape[0], type_)})
        else:
            size = atom.shape[0]
            # With as many nodes as edges, only the form can tell: vectors of floats are weights.
            weights = atom.dim() == 1 and atom.is_floating_point()
            on_edges = size in edges and (size != nodes or weights)
            if apart and type_:
                on_edges = len(type_) == 3
            dims.append({0: ("edges" if on_edges else "rows", size, type_)})
    return dims


def _types(atoms: list[Any], keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The node or edge type whose rows each input has.

    Keys of dictionaries are types only where some of them are edge types; what has no key belongs
    to the type that has as many rows, if there is one.
    """
    edge_types = {key for key in keys if len(key) == 3}
    known = {(end,) for src, _, dst in edge_types for end in (src, dst)} | edge_types
    types = [key if edge_types and key in known else () for key in keys]
    of_size: dict[int, tuple[str, ...]] = {}
    for atom, type_ in zip(atoms, types, strict=True):
        if type_ and _is_plain(atom) and atom.dim():
            of_size.setdefault(atom.shape[1 if is_edge_index(atom) else 0], type_)
    return [
        of_size.get(atom.shape[0], ())
        if not type_ and _is_plain(atom) and atom.dim() and not is_edge_index(atom)
        else type_
        for atom, type_ in zip(atoms, types, strict=True)
    ]


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_sparse(value)


def _is_ptr(value: Any, rows: set[int]) -> bool:
    """Whether a value marks where graphs begin: 0, ..., number of rows, never falling."""
    if not _is_plain(value) or value.dim() != 1 or value.dtype not in (torch.int64, torch.int32):
        return False
    if value.numel() < 2 or int(value[0]) != 0 or int(value[-1]) not in rows:
        return False
    return bool((value.diff() >= 0).all()) and int(value[-1]) != int(value[-2])


def _resized_ptr(ptr: Tensor, length: int, rows: dict[int, int]) -> Tensor:
    end = rows[int(ptr[-1])]
    return torch.arange(length, device=ptr.device, dtype=ptr.dtype) * end // (length - 1)


def _in_range(value: Tensor, highest: int | None) -> Tensor:
    """Integers below `highest`, in the order they had; small ones, such as types, unchanged."""
    if highest is None or value.is_floating_point() or value.dtype == torch.bool:
        return value
    if not value.numel() or int(value.max()) < highest:
        return value
    return value * highest // (int(value.max()) + 1)


def _pick(value: Tensor, dim: int, size: int) -> Tensor:
    """`size` evenly spaced slices of `value`, repeating them if there are fewer."""
    given = value.shape[dim]
    if given == 0:
        shape = list(value.shape)
        shape[dim] = size
        return value.new_zeros(shape)
    picks = torch.arange(size, device=value.device) * given // size
    return value.detach().index_select(dim, picks)
