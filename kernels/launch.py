"""Device code is loaded on first use: importing an op costs neither Numba nor Triton."""

from __future__ import annotations

import importlib
from typing import Any

from gnnfx.ir.op import Impl


def numba_impl(module: str, name: str) -> Impl:
    """`module.name` as the CPU implementation; `module.reject_name` says what it cannot take."""
    return lazy_impl("numba", "cpu", module, name)


def triton_impl(module: str, name: str) -> Impl:
    """`module.name` as the GPU implementation; `module.reject_name` says what it cannot take."""
    return lazy_impl("triton", "cuda", module, name)


def lazy_impl(kind: str, device: str, module: str, name: str) -> Impl:
    """`module.name` as an implementation called `kind`, imported when it is first asked for."""
    loaded: dict[str, Any] = {}

    def load(attribute: str) -> Any:
        if attribute not in loaded:
            loaded[attribute] = getattr(importlib.import_module(module), attribute)
        return loaded[attribute]

    def fn(*args: Any, **kwargs: Any) -> Any:
        return load(name)(*args, **kwargs)

    def reject(*args: Any, **kwargs: Any) -> str | None:
        try:
            reason: str | None = load(f"reject_{name}")(*args, **kwargs)
        except ImportError as error:
            return f"{kind} cannot be used here: {error}"
        return reason

    return Impl(kind, device, fn, reject)
