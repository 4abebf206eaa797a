"""Memory while compiling: only new garbage is looked for, and nothing is kept."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch_geometric.nn import GCN

import gnnfx
from gnnfx.heap import compilation


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_older_objects_are_left_out_and_come_back() -> None:
    older = _Cycle()
    found = weakref.ref(older)
    with compilation():
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
    with pytest.raises(KeyError), compilation():
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_the_user_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        with compilation():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_what_was_traced_is_not_kept() -> None:
    def environments() -> int:
        for _ in range(3):  # what tensors of C++ hold is only seen to be free once they are gone
            gc.collect()
        return sum(type(thing) is ShapeEnv for thing in gc.get_objects())

    example = torch.randn(9, 4), torch.randint(9, (2, 20))
    gnnfx.optimize(GCN(4, 4, 1).eval(), "fp32", example)
    before = environments()
    for _ in range(3):
        gnnfx.optimize(GCN(4, 4, 1).eval(), "fp32", example)
    assert environments() <= before
