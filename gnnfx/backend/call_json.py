"""Calls as JSON.  What JSON would lose or change is refused when it is written."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from typing import Any

from torch.utils import _pytree as pytree

from gnnfx.backend.call import Call
from gnnfx.errors import ArtifactError
from gnnfx.frontend.signature import Signature

_CONTAINERS = {kind: f"{kind.__module__}.{kind.__name__}" for kind in (list, tuple, dict)}
_CONTAINERS[OrderedDict] = "collections.OrderedDict"


def encode(call: Call) -> dict[str, Any]:
    """JSON of a call; raises ArtifactError naming the value that has none."""
    for name, value in call.signature.defaults.items():
        _verify_plain(f"argument {name!r} of forward defaults to", value)
    for name, value in call.constants.items():
        _verify_plain(f"argument {name!r} was, in the example,", value)
    _verify_containers(call.out_spec)
    return {
        "signature": vars(call.signature),
        "arguments": call.arguments,
        "leaves": call.leaves,
        "constants": call.constants,
        "out_spec": pytree.treespec_dumps(call.out_spec),
    }


def decode(data: dict[str, Any]) -> Call:
    """The call of that JSON; raises ValueError, LookupError or TypeError for any other."""
    signature: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data["signature"].items()
    }
    # Defaults are recognized by identity, and Python shares the strings that look like names.
    signature["defaults"] = {
        name: sys.intern(value) if type(value) is str else value
        for name, value in signature["defaults"].items()
    }
    _verify_names(json.loads(data["out_spec"])[1])
    return Call(
        Signature(**signature),
        tuple(data["arguments"]),
        tuple(data["leaves"]),
        data["constants"],
        pytree.treespec_loads(data["out_spec"]),
    )


def _verify_plain(what: str, value: Any) -> None:
    if type(value) is list:
        for item in value:
            _verify_plain(what, item)
    elif type(value) is dict and all(type(key) is str for key in value):
        for item in value.values():
            _verify_plain(what, item)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ArtifactError(
            f"{what} {value!r}, which a file cannot hold; expected None, a bool, a number, a "
            f"string, or lists and dicts of them"
        )


def _verify_containers(spec: pytree.TreeSpec) -> None:
    """Take only results whose containers can be made without importing their class."""
    if spec.is_leaf():
        return
    if spec.type not in _CONTAINERS:
        raise ArtifactError(
            f"the model returns a {spec.type.__qualname__}, which a file cannot hold; expected "
            f"tensors in lists, tuples and dicts"
        )
    keys = [] if spec.type in (list, tuple) else spec.context
    if any(type(key) not in (str, int) for key in keys):
        raise ArtifactError(
            f"the model returns a dict with the keys {list(keys)}; expected strings or ints"
        )
    for child in spec.children():
        _verify_containers(child)


def _verify_names(tree: dict[str, Any]) -> None:
    """Of the containers that torch can rebuild, some import what they name: take only these."""
    if tree["type"] is not None and tree["type"] not in _CONTAINERS.values():
        raise ValueError(f"{tree['type']!r} is not a container of results")
    for child in tree["children_spec"]:
        _verify_names(child)
