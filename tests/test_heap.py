"""Garbage collection while compiling: new garbage only, and nothing of it stays changed."""

from __future__ import annotations

import gc
import weakref

import pytest

from gnnfx.heap import older_objects_unscanned


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_older_objects_are_left_out_and_come_back() -> None:
    older = _Cycle()
    found = weakref.ref(older)
    with older_objects_unscanned():
        assert gc.get_freeze_count() > 0
        del older
        newer = weakref.ref(_Cycle())
        gc.collect()
        assert newer() is None
        assert found() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert found() is None


def test_an_error_thaws_too() -> None:
    with pytest.raises(KeyError), older_objects_unscanned():
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_the_user_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        with older_objects_unscanned():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
