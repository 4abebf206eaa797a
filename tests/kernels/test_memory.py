"""Buffers are used again once nothing refers to them, and never before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gnnfx.kernels.memory import Workspace, empty, release_buffers

SHAPE = (1024, 512)


def _address(workspace: Workspace) -> int:
    with workspace.lend():
        return empty(SHAPE).data_ptr()


@pytest.mark.parametrize("shape", [SHAPE, (0, 4), (3,), (5_000_000,)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_memory_is_of_the_shape_asked_for(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    workspace = Workspace()
    for _ in range(2):
        with workspace.lend():
            made = empty(shape, dtype)
        assert made.shape == shape
        assert made.dtype == dtype
        assert made.is_contiguous()
        assert made.untyped_storage().nbytes() == made.nbytes
        del made


def test_a_free_buffer_is_used_again() -> None:
    workspace = Workspace()
    assert _address(workspace) == _address(workspace)
    with workspace.lend():
        first, second = empty(SHAPE), empty(SHAPE)
        assert first.data_ptr() != second.data_ptr()
        before = first.data_ptr()
        del first
        assert empty(SHAPE).data_ptr() == before, "within a call, too"


_HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "view": lambda t: t[3:5].t(),
    "numpy": lambda t: t.numpy()[1:],
    "storage": lambda t: t.untyped_storage(),
    "typed storage": lambda t: t.storage(),
    "dlpack": lambda t: t.__dlpack__(),
    "closure": lambda t: lambda: t,
}


@pytest.mark.parametrize("kind", list(_HOLDERS))
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_what_somebody_holds_stays(kind: str) -> None:
    workspace = Workspace()
    with workspace.lend():
        made = empty(SHAPE).fill_(7)
    address, held = made.data_ptr(), _HOLDERS[kind](made)
    del made
    assert _address(workspace) != address
    assert held is not None


def test_shared_memory_is_left_to_other_processes() -> None:
    workspace = Workspace()
    with workspace.lend():
        made = empty(SHAPE).share_memory_()
    address = made.data_ptr()
    del made
    assert _address(workspace) != address


def test_buffers_that_a_call_does_not_need_are_released() -> None:
    workspace = Workspace()
    _address(workspace)
    with workspace.lend():
        empty((2048, 512))
    assert [b.nbytes() for b in workspace._buffers] == [2048 * 512 * 4]


def test_other_sizes_do_not_add_up() -> None:
    """A batch that differs from the last one takes the place of its buffers."""
    workspace = Workspace()
    with workspace.lend():
        empty((2048, 512)), empty((3072, 512))
    with workspace.lend():
        empty(SHAPE)
        assert sorted(b.nbytes() for b in workspace._buffers) == [SHAPE[0] * 2048, 3072 * 2048]


def test_buffers_of_several_sizes_are_used_again() -> None:
    """One is free when the next is taken, as in a layer behind another."""
    workspace, addresses = Workspace(), []
    for _ in range(2):
        with workspace.lend():
            addresses.append([empty((rows, 512)).data_ptr() for rows in (1024, 2048, 1024, 3072)])
    assert addresses[0] == addresses[1]


def test_buffers_are_released_for_measuring() -> None:
    workspace = Workspace()
    with workspace.lend():
        held = empty(SHAPE).fill_(3)
    release_buffers()
    assert workspace._buffers == []
    assert bool((held == 3).all())


def test_threads_have_buffers_of_their_own() -> None:
    workspace, together = Workspace(), threading.Barrier(4)
    wrong = []

    def call(number: int) -> None:
        for _ in range(50):
            together.wait()
            with workspace.lend():
                made = empty(SHAPE).fill_(number)
                other = empty(SHAPE).fill_(-number)
                if not (bool((made == number).all()) and bool((other == -number).all())):
                    wrong.append(number)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
