"""The file of an artifact: a safetensors file whose metadata is one JSON document.

    8 bytes       length of the header
    header        {"__metadata__": {"gnnfx": DOCUMENT}, NAME: {dtype, shape, data_offsets}, ...}
    the rest      tensors

DOCUMENT is JSON in a string, and starts with `sha256`, the digest of every byte of the file but
its own 64 characters.  So the digest stands at a fixed place, and no changed byte goes unseen.
Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gnnfx.errors import ArtifactError

FORMAT = 1
_KEY = "gnnfx"
_BEFORE_DIGEST = b'{"__metadata__":{"gnnfx":"{\\"sha256\\":\\"'
_DIGEST_AT = 8 + len(_BEFORE_DIGEST)
_DIGEST_END = _DIGEST_AT + hashlib.sha256().digest_size * 2


def write(path: Path, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put an artifact in the place of `path` at once, or leave what is there as it is.

    Raises ArtifactError if something other than a regular file is there, or on OSError.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise ArtifactError(f"{path} exists and is not a regular file; it is not overwritten")
    text = json.dumps({"sha256": "0" * 64, "format": FORMAT, **document}, separators=(",", ":"))
    beside = path.with_name(f".{secrets.token_hex(8)}.gnnfx")
    try:
        data = save(_stored(tensors), {_KEY: text})
        with beside.open("xb") as file:
            file.writelines((data[:_DIGEST_AT], _digest(data), memoryview(data)[_DIGEST_END:]))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{path} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors (on the CPU) of an artifact.

    Raises ArtifactError if the file cannot be read, is no artifact, has another format version,
    or is not, byte for byte, what was written.
    """
    try:
        if not path.is_file():
            raise ArtifactError(f"{path} is not a file; expected an artifact of gnnfx.save")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} could not be read: {error}") from error
    document = _document(path, data)
    found, expected = _digest(data), data[_DIGEST_AT:_DIGEST_END]
    if found != expected:
        raise ArtifactError(
            f"{path} was changed or cut short after it was saved: its content has sha256 "
            f"{found.decode()}, expected {expected.decode(errors='replace')}"
        )
    try:
        # Copied into torch's own memory, whose alignment kernels may count on.
        return document, {name: tensor.clone() for name, tensor in load(data).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} holds no valid tensors: {error}") from error


def _document(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON document in the header of a file; its format version is the one known here."""
    if data[8:_DIGEST_AT] != _BEFORE_DIGEST:
        raise ArtifactError(f"{path} does not start like an artifact of gnnfx.save")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ArtifactError(
            f"{path} is cut short: it has {len(data)} bytes, its header alone {length + 8}"
        )
    try:
        document: dict[str, Any] = json.loads(
            json.loads(data[8 : 8 + length])["__metadata__"][_KEY]
        )
        version = document["format"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} has a header that cannot be read: {error}") from error
    if version != FORMAT:
        raise ArtifactError(f"{path} has format version {version!r}; expected {FORMAT}")
    return document


def _digest(data: bytes) -> bytes:
    """Hexadecimal sha256 of a file, the place of its digest left out."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:_DIGEST_AT])
    digest.update(view[_DIGEST_END:])
    return digest.hexdigest().encode()


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU without gaps, none of which shares memory with another."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _sync_folder(folder: Path) -> None:
    """Make the renaming of a file in `folder` survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
