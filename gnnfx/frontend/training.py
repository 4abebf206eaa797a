"""From a module to a program that can be trained: dropout stays visible.

The model is captured in eval mode, as ever.  Meanwhile each dropout leaves a `dropout` op behind
instead of vanishing, and batch norm is captured with its running statistics; both are told at run
time whether to train.  Whatever else a model does only in training (`if self.training: ...`) is
not part of the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
def _visible_dropout() -> Iterator[None]:
    """Let torch's dropout functions, all of which end in `torch._VF`, leave an op behind."""
    functions = vars(torch._VF)
    names = ("dropout", "dropout_")
    real = {name: getattr(torch._VF, name) for name in names}

    def marked(name: str) -> Any:
        def dropout(x: Tensor, p: float, train: bool) -> Tensor:
            # Dropout that is asked for in eval mode does not follow .train() and .eval().
            if train or p == 0.0:
                return real[name](x, p, train)  # type: ignore[no-any-return]
            return torch.ops.gnnfx.dropout(x, p)  # type: ignore[no-any-return]

        return dropout

    before = {name: functions[name] for name in names if name in functions}
    functions.update({name: marked(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del functions[name]
        functions.update(before)
