"""Keep compilations from scanning, and from filling, the memory of the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx.experimental.symbolic_shapes import ShapeEnv


@contextmanager
def compilation() -> Iterator[None]:
    """Inside, garbage collection looks only at objects made inside; afterwards they are free to go.

    Compiling makes so many small objects that full collections run, each of which would scan the
    whole process: 0.2 s for the modules of torch alone.  Objects that somebody else has frozen
    stay frozen.  And torch remembers answers about symbolic sizes by the environment that each
    export makes, so that none would ever go.
    """
    frozen = gc.get_freeze_count()
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
