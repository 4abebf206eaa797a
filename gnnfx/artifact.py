"""Artifacts: an optimized module as one file of tensors and text.

    gnnfx.save(optimized, "model.gnnfx")
    optimized = gnnfx.load("model.gnnfx")

The file holds the text of the program, its tensors, the form of a call and the report.  Loading
needs neither the model's classes nor PyTorch Geometric, and executes nothing of the file: the
program is parsed, and calls only ops that compute (`gnnfx.ir.program.op_target`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx import artifact_file
from gnnfx.backend import call_json
from gnnfx.backend.call import Call
from gnnfx.backend.module import OptimizedModule
from gnnfx.errors import ArtifactError, InputError, ParseError
from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, restore, retarget
from gnnfx.report import Report


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
    if optimized_kept := getattr(getattr(optimized, "report", None), "kept", ()):
        path_kept, reason = optimized_kept[0]
        raise ArtifactError(
            f"{path_kept or 'the model'} runs as Python code, which cannot be saved: {reason}"
        )
    if type(optimized) is not OptimizedModule:
        given = type(optimized).__name__
        raise InputError(f"optimized must be an OptimizedModule of gnnfx.optimize, got {given}")
    if "_eager" in optimized.added():
        raise ArtifactError(
            "the model branches on its data and falls back to its own Python code for graphs that "
            "take another branch than the example, so it cannot be saved"
        )
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
        "call": call_json.encode(optimized.call),
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
            call_json.decode(document["call"]),
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
