"""What every pass test does: run one pass on IR text and compare text and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, parse
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import Pass, PassContext
from gnnfx.policy import Policy


def rewrite(
    pass_: Pass, text: str, policy: Policy | None = None
) -> tuple[Program, Program, PassContext]:
    """The program of `text` before and after `pass_`, verified, and the remarks."""
    before, ctx = parse(text), PassContext(policy or Policy())
    after = pass_.run(before, ctx)
    if after is not before:
        verify(after, before)
    return before, after, ctx


def check_second_run(pass_: Pass, program: Program, policy: Policy | None = None) -> None:
    """A pass has nothing left to do where it has been."""
    assert pass_.run(program, PassContext(policy or Policy())) is program


def check_values(before: Program, after: Program, *inputs: Any, rtol: float = 1e-5) -> None:
    """Both programs give the same results on `inputs`."""
    for old, new in zip(before.run(*inputs), after.run(*inputs), strict=True):
        torch.testing.assert_close(new, old, rtol=rtol, atol=1e-5)


def body(program: Program) -> list[str]:
    """The instructions of a program without names of tensors it owns, for reading in asserts."""
    return [i.op for i in program.instrs if i.op not in ("input", "param", "return")]


def edges(nodes: int, count: int) -> tuple[Tensor, Tensor]:
    """Random sources and destinations, self-loops and duplicates included."""
    generator = torch.Generator().manual_seed(count)
    return (
        torch.randint(nodes, (count,), generator=generator),
        torch.randint(nodes, (count,), generator=generator),
    )


__all__ = ["body", "check_second_run", "check_values", "dump", "edges", "rewrite"]
