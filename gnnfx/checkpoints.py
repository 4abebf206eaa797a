"""Checkpoints of a run in stages: one file of tensors and text for each stage that is done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnnfx import artifact_file
from gnnfx.errors import InputError


class Checkpoints:
    """The stages of one run that are done.

    folder: where they are; None keeps nothing.
    run: what makes a run the same run, see `fingerprint`.

    Raises InputError if `folder` holds stages of another run.
    """

    def __init__(self, folder: Path | None, run: str) -> None:
        self._folder = folder
        self._run = run
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, stage: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """(facts, tensors) of a stage, or None if it is not done; ArtifactError if damaged."""
        path = self._path(stage)
        if path is None or not path.exists():
            return None
        document, tensors = artifact_file.read(path)
        if document.get("run") != self._run:
            raise InputError(
                f"checkpoint_dir holds {path.name} of a run with another model, data, policy or "
                f"training; expected an empty folder, or one of a run with the same arguments"
            )
        return document["facts"], tensors

    def write(self, stage: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Keep what a stage ended with, all at once: a file is there whole or not at all."""
        if (path := self._path(stage)) is not None:
            artifact_file.write(path, {"run": self._run, "facts": facts}, tensors)

    def _path(self, stage: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{stage}.gnnfx-stage"


def fingerprint(facts: object, tensors: Iterable[Tensor]) -> str:
    """A digest of the text of `facts` and of every byte of `tensors`."""
    digest = hashlib.sha256(repr(facts).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor.detach()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
