"""Fixtures of all tests.  Without a GPU, Triton kernels run in its interpreter."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    # Triton reads this when it is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: threads of their own would only wait for each other.
    torch.set_num_threads(1)

GUARD_BYTES = 256
_SENTINEL = 0x5B  # odd and large: as a count, an index or a code it is wrong wherever it shows up


def _poison(memory: Tensor) -> Tensor:
    return memory.fill_(math.nan if memory.is_floating_point() else _SENTINEL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Torch draws the same numbers for a test whenever it runs."""
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file of that name in tests/golden/, or rewrites the file."""

    def check(name: str, text: str) -> None:
        file = Path(__file__).parent / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert file.is_file(), f"no {file.name} in tests/golden/; run with --update-golden"
        assert text == file.read_text()

    return check


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.empty` hands out memory full of NaN (integers: a sentinel) between two guards.

    What a kernel reads before writing, or leaves unwritten, shows in its result; what it writes
    outside of its output fails the test at the end.
    """
    guards: list[tuple[Tensor, Tensor]] = []
    real_empty = torch.empty

    def empty(*size: Any, **kwargs: Any) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        probe = real_empty(0, **kwargs)
        count, guard = math.prod(shape), GUARD_BYTES // probe.element_size()
        memory = _poison(real_empty(count + 2 * guard, **kwargs))
        for part in (memory[:guard], memory[guard + count :]):
            guards.append((part, part.clone()))
        return memory[guard : guard + count].view(tuple(shape))

    def empty_like(like: Tensor, **kwargs: Any) -> Tensor:
        return empty(tuple(like.shape), **{"dtype": like.dtype, "device": like.device, **kwargs})

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    yield
    monkeypatch.undo()
    for part, before in guards:
        same = torch.equal(part.view(torch.uint8), before.view(torch.uint8))
        assert same, "a kernel wrote outside of its output"
