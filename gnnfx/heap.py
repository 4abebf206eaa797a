"""Spare compilation full garbage collections of what was there before it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def older_objects_unscanned() -> Iterator[None]:
    """Inside, Python's garbage collector looks only at objects made inside.

    Compiling makes so many small objects that full collections run, each of which would scan the
    whole process: 0.2 s for the modules of torch alone.  Objects that somebody else has frozen
    stay frozen.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
