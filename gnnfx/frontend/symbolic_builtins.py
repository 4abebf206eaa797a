"""Let `int(index.max()) + 1`, `len(x)` and `max(n, m)` stay symbolic while a model is captured.

PyG infers the number of nodes or graphs from an index with `int(...)`, which would freeze the
example's number into the program; `len` and comparing sizes do the same.  While capturing, these
names in PyG's modules and in those of the model keep traced numbers as symbols; for everything
else they are the built-ins.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


class _IntLike(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else 0
        if isinstance(value, FakeTensor):
            number = value.item()
            if isinstance(number, torch.SymInt):
                torch._check(number >= 0)
            return number
        if isinstance(value, torch.SymInt):
            return value
        return int(*args, **kwargs)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, int)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, int)


class _Int(metaclass=_IntLike):
    """Stands for `int` in a module's globals."""


def _len(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)


def _extreme(builtin: Callable[..., Any], symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """`max` or `min` that compares symbolic sizes without deciding which is larger."""

    def extreme(*args: Any, **kwargs: Any) -> Any:
        values = list(args[0]) if len(args) == 1 else list(args)
        numbers = all(isinstance(v, (int, torch.SymInt)) for v in values)
        if numbers and not kwargs and any(isinstance(v, torch.SymInt) for v in values):
            return functools.reduce(symbolic, values)
        return builtin(values, **kwargs) if len(args) == 1 else builtin(*args, **kwargs)

    return extreme


_BUILTINS = {
    "int": _Int,
    "len": _len,
    "max": _extreme(max, torch.sym_max),
    "min": _extreme(min, torch.sym_min),
}


@contextmanager
def symbolic_builtins(model: nn.Module) -> Iterator[None]:
    """Shadow the built-ins in PyG and in the modules that define the layers of `model`."""
    names = {type(m).__module__ for m in model.modules()}
    spaces = [
        vars(module)
        for name, module in list(sys.modules.items())
        if (name in names or name.startswith("torch_geometric."))
        and module is not None
        and not name.startswith("torch.")
    ]
    shadowed = [(space, name) for space in spaces for name in _BUILTINS if name not in space]
    for space, name in shadowed:
        space[name] = _BUILTINS[name]
    try:
        yield
    finally:
        for space, name in shadowed:
            space.pop(name, None)
