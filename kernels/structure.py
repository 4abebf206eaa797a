"""structure: look up, or compute, everything of a program that depends on the graph alone.

The one op with a memory.  It is opaque to torch.compile, so that compiled programs recognize
graphs exactly as others do; a handle names the program whose structure part it runs.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class StructureOwner(Protocol):
    """Whatever holds the structure part of one program."""

    def lookup_structure(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]: ...

    def fake_structure(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]: ...


_OWNERS: weakref.WeakValueDictionary[int, StructureOwner] = weakref.WeakValueDictionary()
_HANDLES = itertools.count()
_LIBRARY = torch.library.Library("gnnfx", "FRAGMENT")


def own_structure(owner: StructureOwner) -> int:
    """A handle under which `torch.ops.gnnfx.structure` finds `owner` while it lives."""
    handle = next(_HANDLES)
    _OWNERS[handle] = owner
    return handle


def _lookup(tensors: list[Tensor], sizes: list[int], handle: int) -> list[Tensor]:
    # Compiled code may write into the outputs of an op once it has used them: hand out copies.
    return [t.clone() for t in _OWNERS[handle].lookup_structure(tensors, sizes)]


@functools.cache
def _untraced() -> Callable[..., list[Tensor]]:
    """`_lookup`, of which Dynamo compiles no part; made late, as this imports Dynamo."""
    disabled: Callable[..., list[Tensor]] = torch.compiler.disable(_lookup)
    return disabled


def _run(tensors: list[Tensor], sizes: list[int], handle: int) -> list[Tensor]:
    return _untraced()(tensors, sizes, handle)


def _fake(tensors: list[Tensor], sizes: list[Any], handle: int) -> list[Tensor]:
    return _OWNERS[handle].fake_structure(tensors, sizes)


_LIBRARY.define(
    "structure(Tensor[] tensors, SymInt[] sizes, int handle) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.impl("structure", _run, "CompositeExplicitAutograd")
torch.library.register_fake("gnnfx::structure", _fake, lib=_LIBRARY)
