"""Example inputs: made from a forward signature, or resized to the sizes that tracing wants.

Tracing must see no coincidences: sizes that merely happen to be equal (as many nodes as edges,
a graph of one node) would be taken for constants.  So every trace runs on a graph whose node,
edge and other row counts are distinct and differ from all channel counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gnnfx.errors import InputError

TRACE_SIZES = (23, 97, 11, 13, 17, 19, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89)
CHECK_SIZES = (9, 40, 5, 6, 7, 8, 10, 12, 14, 15, 16, 18, 20, 21, 22, 24, 25, 26, 27, 28, 30)

Leaves = dict[str, Any]


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
    nodes, edges = TRACE_SIZES[:2]
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


def row_counts(leaves: Leaves) -> dict[tuple[str, int], int]:
    """The dimensions that vary between graphs: (leaf, dimension) -> size in the example."""
    counts: dict[tuple[str, int], int] = {}
    for name, value in leaves.items():
        if is_edge_index(value):
            counts[name, 1] = value.shape[1]
        elif isinstance(value, Tensor) and value.dim() > 0:
            counts[name, 0] = value.shape[0]
    return counts


def resize(leaves: Leaves, sizes: tuple[int, ...]) -> Leaves:
    """The same kinds of inputs with other row counts, one of `sizes` for each count.

    Leaves of equal row count stay equal; an edge index is told apart from rows by its form.
    Integers that equal the number of nodes follow it.
    """
    counts = row_counts(leaves)
    groups = _groups(leaves, counts)
    channels = {
        size
        for name, value in leaves.items()
        if isinstance(value, Tensor)
        for dim, size in enumerate(value.shape)
        if (name, dim) not in counts
    }
    free = iter(size for size in sizes if size not in channels)
    new_size = {group: next(free) for group in dict.fromkeys(groups.values())}
    nodes = next((new_size[groups[k]] for k in groups if groups[k][0] == "rows"), None)
    resized = dict(leaves)
    for (name, dim), group in groups.items():
        picked = _pick(leaves[name], dim, new_size[group])
        resized[name] = picked % nodes if is_edge_index(picked) and nodes else picked
    for name, value in leaves.items():
        if isinstance(value, int) and not isinstance(value, bool) and ("rows", value) in new_size:
            resized[name] = new_size["rows", value]
    return resized


def _groups(
    leaves: Leaves, counts: dict[tuple[str, int], int]
) -> dict[tuple[str, int], tuple[str, int]]:
    """Which dimensions share a size: ('edges', size) or ('rows', size)."""
    edge_counts = {size for (name, _), size in counts.items() if is_edge_index(leaves[name])}
    floats = [
        size
        for (name, _), size in counts.items()
        if leaves[name].is_floating_point() and leaves[name].dim() > 1
    ]
    nodes = floats[0] if floats else None
    groups = {}
    for (name, dim), size in counts.items():
        value = leaves[name]
        # With as many nodes as edges only the form can tell: vectors of floats are edge weights.
        ambiguous = size == nodes and not (value.dim() == 1 and value.is_floating_point())
        on_edges = is_edge_index(value) or (size in edge_counts and not ambiguous)
        groups[name, dim] = ("edges" if on_edges else "rows", size)
    return dict(sorted(groups.items(), key=lambda item: item[1] != ("rows", nodes)))


def _pick(value: Tensor, dim: int, size: int) -> Tensor:
    """`size` evenly spaced slices of `value`, repeating them if there are fewer."""
    given = value.shape[dim]
    if given == 0:
        shape = list(value.shape)
        shape[dim] = size
        return value.new_zeros(shape)
    picks = torch.arange(size, device=value.device) * given // size
    return value.index_select(dim, picks)
