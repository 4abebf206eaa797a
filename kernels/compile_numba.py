"""Compile kernels once per machine: machine code is kept on disk beside the source."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import sigutils, types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys

from gnnfx.kernels.threads import Kernel

_SIGNATURE = types.void(types.CPointer(types.int64))
_LAUNCHED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
LANES = (128, 64, 16, 8, 4, 2, 1)  # each width is a kernel to compile, so there are few


@functools.cache
def compiled(make: Callable[..., Any], *constants: Any) -> Kernel:
    """The kernel that `make(*constants)` defines, loaded or compiled on first use."""
    function = make(*constants)
    # Numba finds a function or intrinsic in a closure on disk only in the process that wrote it.
    assert not any(callable(c.cell_contents) for c in function.__closure__ or ())
    function.__qualname__ += f"_{_shared_source()}"
    kernel = CFunc(function, sigutils.normalize_signature(_SIGNATURE), {}, {"error_model": "numpy"})
    # Without a directory that it may write to, Numba compiles in every process.
    with contextlib.suppress(RuntimeError):
        kernel._cache = _OnDisk(function)
    kernel.compile()
    return _LAUNCHED(kernel.address)


class _OnDisk(FunctionCache):  # type: ignore[misc]
    """Numba's cache, without loading all that Numba can compile only to read what it has compiled.

    That takes half a second of the first call of a process; compiling does it in any case.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # machine code may name functions of Numba's runtime
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


@functools.cache
def _shared_source() -> str:
    """What the files say that kernels of other files are made of.

    Numba compiles a kernel again when its own file has changed, but does not look at these.
    """
    names = "vectors csr epilogue attention attention_rows nonzeros tiles messages"
    files = [f"{name}_numba.py" for name in names.split()]
    text = b"".join(Path(__file__).with_name(name).read_bytes() for name in files)
    return hashlib.sha256(text).hexdigest()[:12]


def half_lanes(channels: int) -> int:
    """The power of two of which two blocks, which may overlap, cover a row and one does not."""
    return 1 << ((channels - 1).bit_length() - 1)


@functools.cache
def choose_lanes(channels: int, most: int = 128) -> int:
    """The widest block of channels; a last, overlapping block takes what it leaves."""
    return next(lanes for lanes in LANES if lanes <= min(channels, most))
