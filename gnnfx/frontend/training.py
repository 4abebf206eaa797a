"""From a module to a program that can be trained: dropout stays visible.

The model is captured in eval mode, as ever.  Meanwhile each dropout leaves a `dropout` op behind
instead of vanishing, and batch norm is captured with its running statistics; both are told at run
time whether to train.  Whatever else a model does only in training (`if self.training: ...`) is
not part of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gnnfx.kernels.dropout  # noqa: F401  (registers the op)
from gnnfx.frontend.trace import Traced, trace


def trace_training(
    model: nn.Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> Traced:
    """As `trace`, with `dropout` ops wherever the model drops values in training."""
    with _visible_dropout():
        return trace(model, args, kwargs)


@contextmanager
def without_dropout() -> Iterator[None]:
    """Let torch's dropout functions return what they are given."""
    with _dropout(lambda real, x, p, train: x):
        yield


@contextmanager
def _visible_dropout() -> Iterator[None]:
    """Let torch's dropout functions leave an op behind."""

    def mark(real: Callable[..., Tensor], x: Tensor, p: float, train: bool) -> Tensor:
        # Dropout that is asked for in eval mode does not follow .train() and .eval().
        if train or p == 0.0:
            return real(x, p, train)
        return torch.ops.gnnfx.dropout(x, p)  # type: ignore[no-any-return]

    with _dropout(mark):
        yield


@contextmanager
def _dropout(instead: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the functions of `torch._VF` that all of torch's dropout ends in."""
    functions, names = vars(torch._VF), ("dropout", "dropout_")
    before = {name: functions[name] for name in names if name in functions}
    for name in names:
        functions[name] = partial(instead, getattr(torch._VF, name))
    try:
        yield
    finally:
        for name in names:
            del functions[name]
        functions.update(before)
