"""Let `int(index.max()) + 1` stay symbolic while a model is captured.

PyG infers the number of nodes or graphs from an index with `int(...)`, which would freeze the
example's number into the program.  While capturing, the name `int` in PyG's modules and in those
of the model keeps a traced number as a symbol; for everything else it is the built-in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
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


@contextmanager
def symbolic_int(model: nn.Module) -> Iterator[None]:
    """Shadow `int` in PyG and in the modules that define the layers of `model`."""
    names = {type(m).__module__ for m in model.modules()}
    spaces = [
        vars(module)
        for name, module in list(sys.modules.items())
        if (name in names or name.startswith("torch_geometric."))
        and module is not None
        and not name.startswith("torch.")
    ]
    shadowed = [space for space in spaces if "int" not in space]
    for space in shadowed:
        space["int"] = _Int
    try:
        yield
    finally:
        for space in shadowed:
            space.pop("int", None)
