"""Artifacts: an optimized module as one file of tensors and text.

    gnnfx.save(optimized, "model.gnnfx")
    optimized = gnnfx.load("model.gnnfx")

The file holds the text of the program, its tensors, the form of a call and the report.  Loading
needs neither the model's classes nor PyTorch Geometric, and executes nothing of the file: the
program is parsed, and calls only ops that compute (`gnnfx.ir.program.op_target`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx import artifact_file
from gnnfx.backend.call import Call
from gnnfx.backend.module import OptimizedModule
from gnnfx.errors import ArtifactError, InputError, ParseError
from gnnfx.frontend.signature import Signature
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, restore, retarget
from gnnfx.report import Report

_CONTAINERS = ("builtins.list", "builtins.tuple", "builtins.dict", "collections.OrderedDict")


@dataclass(frozen=True)
class Artifact:
    """What a file holds.

    version: the gnnfx that saved it.
    text: the program.
    tensors: by their names in the program; names of one tensor share it.
    """

    version: str
    text: str
    tensors: dict[str, Tensor]
    call: Call
    report: Report


def save(optimized: OptimizedModule, path: str | os.PathLike[str]) -> None:
    """Write `optimized`, with its tensors as they are now, to the file `path`.

    A regular file at `path` is replaced, all at once.  Raises ArtifactError if something else is
    there, or if the module holds what a file cannot: default values or constant arguments that
    are not JSON, results in containers other than list, tuple, dict and OrderedDict, ops other
    than those of gnnfx and ATen, and anything that was added to the module.
    """
    if type(optimized) is not OptimizedModule:
        given = type(optimized).__name__
        raise InputError(f"optimized must be an OptimizedModule of gnnfx.optimize, got {given}")
    if beside := optimized.added():
        raise ArtifactError(f"the module holds {beside} beside its program, which cannot be saved")
    text, tensors = optimized.ir(), optimized.tensors()
    try:
        again = dump(restore(text, tensors))
    except ParseError as error:
        raise ArtifactError(f"the program cannot be saved: {error}") from error
    for line, read_back in zip(text.split("\n"), again.split("\n"), strict=True):
        if line != read_back:
            raise ArtifactError(f"the program cannot be saved: {line!r} reads as {read_back!r}")
    aliases = _aliases(tensors)
    document = {
        "gnnfx": version("gnnfx"),
        "program": text,
        "tensors": aliases,
        "call": _encode_call(optimized.call),
        "report": optimized.report.to_dict(),
    }
    stored = {name: tensors[name] for name in aliases.values()}
    artifact_file.write(Path(path), document, stored)


def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> OptimizedModule:
    """The module that was saved to `path`, with its tensors on `device`.

    Raises ArtifactError if the file is missing, damaged, of another format or of a newer gnnfx,
    and InputError for a device that this machine does not have.
    """
    home = _device(device)
    artifact = read(path)
    moved = {id(t): t.to(home) for t in artifact.tensors.values()}
    tensors = {name: moved[id(t)] for name, t in artifact.tensors.items()}
    try:
        program = restore(retarget(artifact.text, home), tensors)
        _verify_fits(program, artifact.call)
        return OptimizedModule(artifact.call, program, artifact.report)
    except Exception as error:
        raise ArtifactError(f"{path} holds no valid program: {error}") from error


def read(path: str | os.PathLike[str]) -> Artifact:
    """What the file `path` holds, tensors on the CPU; raises ArtifactError."""
    document, stored = artifact_file.read(Path(path))
    try:
        made_by = document["gnnfx"]
        if _release(made_by) > _release(version("gnnfx")):
            raise ArtifactError(
                f"{path} was saved by gnnfx {made_by}; expected {version('gnnfx')} or older"
            )
        return Artifact(
            made_by,
            document["program"],
            {name: stored[key] for name, key in document["tensors"].items()},
            _decode_call(document["call"]),
            Report.from_dict(document["report"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} holds a document that cannot be read: {error}") from error


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version such as 0.1.0.dev3, as far as releases are counted by them."""
    match = re.match(r"\d+(\.\d+)*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a version")
    return tuple(map(int, match[0].split(".")))


def _device(device: str | torch.device) -> torch.device:
    """`device` with its index, as tensors name it."""
    try:
        return torch.empty(0, device=device).device
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"device must be one that this machine has, got {device!r}: {first}"
        ) from error


def _aliases(tensors: dict[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same memory, under which it is stored."""
    first: dict[tuple[Any, ...], str] = {}
    return {
        name: first.setdefault((t.data_ptr() or name, t.shape, t.dtype), name)
        for name, t in tensors.items()
    }


def _verify_fits(program: Program, call: Call) -> None:
    """The call must name each input of the program, and place each of its results."""
    results = len(pytree.tree_leaves(program.output.node.args[0]))
    if (len(call.leaves), call.out_spec.num_leaves) != (len(program.inputs), results):
        raise ValueError(
            f"the program has {len(program.inputs)} inputs and {results} results, the call "
            f"{len(call.leaves)} and {call.out_spec.num_leaves}"
        )


def _encode_call(call: Call) -> dict[str, Any]:
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


def _decode_call(data: dict[str, Any]) -> Call:
    signature: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data["signature"].items()
    }
    # Defaults are recognized by identity, and Python shares the strings that look like names.
    defaults = {k: sys.intern(v) if type(v) is str else v for k, v in signature["defaults"].items()}
    spec_version, tree = json.loads(data["out_spec"])
    _verify_names(tree)
    return Call(
        Signature(**{**signature, "defaults": defaults}),
        tuple(data["arguments"]),
        tuple(data["leaves"]),
        data["constants"],
        pytree.treespec_loads(json.dumps([spec_version, tree])),
    )


def _verify_plain(what: str, value: Any) -> None:
    """Refuse what JSON would lose or change."""
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
    """Refuse results whose containers are classes that loading would have to import."""
    if spec.is_leaf():
        return
    if spec.type not in (list, tuple, dict) and spec.type.__qualname__ != "OrderedDict":
        raise ArtifactError(
            f"the model returns a {spec.type.__qualname__}, which a file cannot hold; expected "
            f"tensors in lists, tuples and dicts"
        )
    if spec.type is not list and spec.type is not tuple:
        keys = spec.context
        if any(type(key) not in (str, int) for key in keys):
            raise ArtifactError(
                f"the model returns a dict with the keys {list(keys)}; expected strings or ints"
            )
    for child in spec.children():
        _verify_containers(child)


def _verify_names(tree: dict[str, Any]) -> None:
    """Of the containers that torch can rebuild, some import what they name: take only these."""
    if tree["type"] is not None and tree["type"] not in _CONTAINERS:
        raise ValueError(f"{tree['type']!r} is not a container of results")
    for child in tree["children_spec"]:
        _verify_names(child)
