"""How a model is called: arguments by name, flattened to the leaves that a program takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from gnnfx.errors import InputError


@dataclass(frozen=True)
class Signature:
    """The parameters of a forward function, in order, and the values they default to."""

    names: tuple[str, ...]
    defaults: dict[str, Any]
    variadic: bool

    @staticmethod
    def of(model: nn.Module) -> Signature:
        specs = inspect.signature(model.forward).parameters.values()
        named = [s for s in specs if s.kind not in (s.VAR_POSITIONAL, s.VAR_KEYWORD)]
        return Signature(
            names=tuple(s.name for s in named),
            defaults={s.name: s.default for s in named if s.default is not s.empty},
            variadic=len(named) < len(specs),
        )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, in signature order, defaults left out.

        Raises InputError for too many, unknown, doubled or missing arguments.
        """
        extra = tuple(f"args{i}" for i in range(len(self.names), len(args)))
        if extra and not self.variadic:
            raise InputError(
                f"forward takes {len(self.names)} arguments {list(self.names)}, got {len(args)}"
            )
        given = dict(zip(self.names + extra, args, strict=False))
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
    """(args, kwargs) of bound arguments: extra positional ones by position, the rest by name."""
    extra = {name for name in inputs if name.startswith("args")}
    named = {name: value for name, value in inputs.items() if name not in extra}
    return tuple(value for name, value in inputs.items() if name in extra), named


def flatten(inputs: dict[str, Any]) -> dict[str, Any]:
    """Leaves of nested inputs under names such as `x`, `x_dict.paper` or `x.0`."""
    leaves: dict[str, Any] = {}
    for name, value in inputs.items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            leaves[".".join([name, *(_key(k) for k in path)])] = leaf
    return leaves


def unflatten(like: dict[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """The nested inputs of the form of `like` with other leaves."""
    values = iter(leaves.values())
    return {
        name: pytree.tree_unflatten(
            [next(values) for _ in pytree.tree_leaves(value)], pytree.tree_structure(value)
        )
        for name, value in like.items()
    }


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
