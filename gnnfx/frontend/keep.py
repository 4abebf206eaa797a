"""Capture around submodules that cannot be captured.

When a model cannot be captured, the smallest submodules at fault are looked for; in the program
each of them is one `kept` call, and everything around it is optimized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnfx.errors import TraceError
from gnnfx.ir.kept import KeptCall, operands, result_types

Call = tuple[tuple[Any, ...], dict[str, Any]]


def submodule_calls(model: nn.Module, run: Callable[[], Any]) -> dict[str, list[tuple[Call, Any]]]:
    """Arguments and results of every call of every submodule while `run` runs."""
    calls: dict[str, list[tuple[Call, Any]]] = {}
    hooks = []
    for path, module in model.named_modules():
        if path:

            def note(m: nn.Module, args: Any, kwargs: Any, result: Any, path: str = path) -> None:
                calls.setdefault(path, []).append(((args, kwargs), result))

            hooks.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def at_fault(
    model: nn.Module,
    calls: dict[str, list[tuple[Call, Any]]],
    capture: Callable[[nn.Module, Call], None],
    path: str = "",
) -> dict[str, str]:
    """The smallest submodules below `path` that cannot be captured by themselves, and why.

    capture: tries one module on one call; raises TraceError.
    """
    found: dict[str, str] = {}
    for name, child in (model.get_submodule(path) if path else model).named_children():
        below = f"{path}.{name}" if path else name
        for call, result in calls.get(below, [])[:1]:
            try:
                capture(child, call)
                break
            except TraceError as error:
                inner = at_fault(model, calls, capture, below)
                if not inner and _is_plain(call, result):
                    inner = {below: str(error)}
                found.update(inner)
        else:
            found.update(at_fault(model, calls, capture, below))
    return found


def _is_plain(call: Call, result: Any) -> bool:
    """Whether a call maps tensors, numbers and None to tensors and None."""
    kinds = (Tensor, int, float, str, bool, type(None))
    given, made = pytree.tree_leaves(call), pytree.tree_leaves(result)
    return (
        all(isinstance(leaf, kinds) for leaf in given)
        and all(leaf is None or isinstance(leaf, Tensor) for leaf in made)
        and any(isinstance(leaf, Tensor) for leaf in given)
    )


class Record:
    """What a site knows; no module, so that export neither looks into it nor undoes changes.

    calls: for each run of the model, the calls of the submodule.
    kept: the calls that were captured, by site.
    """

    def __init__(self, path: str, module: nn.Module, calls: list[list[tuple[Call, Any]]]) -> None:
        self.path = path
        self.module = module
        self.calls = calls
        self.number = 0
        self.kept: dict[str, KeptCall] = {}


class Site(nn.Module):
    """Stands for a kept submodule while its model is captured."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        record = self.record
        number = record.number % len(record.calls[0])
        record.number += 1
        tensors, sizes = operands((args, kwargs))
        if not any(isinstance(t, torch._subclasses.FakeTensor) for t in tensors):
            return record.module(*args, **kwargs)
        runs = [run[number] for run in record.calls]
        wanted = [[t for t in pytree.tree_leaves(r) if t is not None] for _, r in runs]
        types = result_types([operands(call) for call, _ in runs], wanted)
        site = f"{record.path}_call{number}"
        record.kept[site] = KeptCall(record.module, runs[0][0])
        results = iter(torch.ops.gnnfx.kept(tensors, sizes, site, types))
        leaves, spec = pytree.tree_flatten(runs[0][1])
        return pytree.tree_unflatten([None if x is None else next(results) for x in leaves], spec)


def place_sites(
    model: nn.Module, paths: list[str], calls: list[dict[str, list[tuple[Call, Any]]]]
) -> list[Record]:
    """Put a Site in the place of each of these submodules of `model`."""
    records = []
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        runs = [run[path] for run in calls if len(run.get(path, ())) == len(calls[0][path])]
        record = Record(path, model.get_submodule(path), runs)
        setattr(owner, name, Site(record))
        records.append(record)
    return records
