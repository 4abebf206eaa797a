"""kept: a submodule that could not be captured, called as it is from the middle of a program.

    r: (f32[N, 16]) = kept([x, index], [n], 'convs.0.aggr_module', ['f32[t0.0, 16]'])

The result types are written in terms of the call: `t0.0` is the first dimension of the first
tensor, `s0` the first integer, `?` a size that only the data tells.  The module itself belongs to
the program, as its tensors do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnfx.ir.types import DTYPE_OF, SHORT_OF

_LIBRARY = torch.library.Library("gnnfx", "FRAGMENT")


class KeptCall(nn.Module):
    """One call of a kept module, from the tensors and integers among its arguments.

    like: (args, kwargs) of the call, whose other values are used again.
    """

    def __init__(self, module: nn.Module, like: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        super().__init__()
        self.module = module
        leaves, self._spec = pytree.tree_flatten(like)
        self._others = [None if _varies(leaf) else leaf for leaf in leaves]
        self._kinds = [_kind(leaf) for leaf in leaves]

    def forward(self, tensors: list[Tensor], sizes: list[int]) -> list[Tensor]:
        given = {"tensor": iter(tensors), "size": iter(sizes), "other": iter(())}
        leaves = [
            other if kind == "other" else next(given[kind])
            for kind, other in zip(self._kinds, self._others, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return [t for t in pytree.tree_leaves(self.module(*args, **kwargs)) if t is not None]


def operands(call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[list[Tensor], list[Any]]:
    """The tensors and the integers among the arguments of a call."""
    leaves = pytree.tree_leaves(call)
    return (
        [leaf for leaf in leaves if _kind(leaf) == "tensor"],
        [leaf for leaf in leaves if _kind(leaf) == "size"],
    )


def result_types(
    calls: Sequence[tuple[list[Tensor], list[int]]], results: Sequence[list[Tensor]]
) -> list[str]:
    """Types of the results in terms of the operands, from calls on graphs of several sizes."""
    types = []
    for number in range(len(results[0])):
        outputs = [r[number] for r in results]
        dims = [
            _dim(calls, [int(o.shape[dim]) for o in outputs]) for dim in range(outputs[0].dim())
        ]
        types.append(f"{SHORT_OF[outputs[0].dtype]}[{', '.join(dims)}]")
    return types


def _dim(calls: Sequence[tuple[list[Tensor], list[int]]], found: list[int]) -> str:
    """What a dimension of these sizes, one a call, is equal to in every call."""
    if len(set(found)) == 1 and len(found) > 1:
        return str(found[0])
    tensors, sizes = calls[0]
    for i, tensor in enumerate(tensors):
        for dim in range(tensor.dim()):
            if [int(given[i].shape[dim]) for given, _ in calls] == found:
                return f"t{i}.{dim}"
    for i in range(len(sizes)):
        if [given[i] for _, given in calls] == found:
            return f"s{i}"
    return str(found[0]) if len(found) == 1 else "?"


def _fake(tensors: list[Tensor], sizes: list[Any], site: str, results: list[str]) -> list[Tensor]:
    def size(text: str) -> Any:
        if text == "?":
            return torch.library.get_ctx().new_dynamic_size()
        if match := re.fullmatch(r"t(\d+)\.(\d+)", text):
            return tensors[int(match[1])].shape[int(match[2])]
        return sizes[int(text[1:])] if text.startswith("s") else int(text)

    made = []
    for result in results:
        short, shape = result.removesuffix("]").split("[")
        dims = [size(d) for d in shape.split(", ") if d]
        made.append(torch.empty(dims, dtype=DTYPE_OF[short], device=tensors[0].device))
    return made


def _run(tensors: list[Tensor], sizes: list[int], site: str, results: list[str]) -> list[Tensor]:
    raise RuntimeError(f"{site} is a module that only its program can call")


def _varies(leaf: Any) -> bool:
    return _kind(leaf) != "other"


def _kind(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return "tensor"
    return "size" if isinstance(leaf, (int, torch.SymInt)) and type(leaf) is not bool else "other"


_LIBRARY.define(
    "kept(Tensor[] tensors, SymInt[] sizes, str site, str[] results) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.impl("kept", _run, "CompositeExplicitAutograd")
torch.library.register_fake("gnnfx::kept", _fake, lib=_LIBRARY)
