"""Torch's ops in lent memory compute what they compute elsewhere, and reuse only what is free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gnnfx.backend import lent
from gnnfx.kernels.memory import Workspace

_aten = torch.ops.aten
BINARY = {_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor}
BINARY |= {_aten.maximum.default, _aten.minimum.default}
UNARY = sorted(lent._POINTWISE - BINARY - {_aten.addcmul.default}, key=str)
ROWS = 2**21 // 8  # 8 MB in 8 channels


@pytest.mark.parametrize("op", UNARY, ids=str)
def test_one_operand(op: Any) -> None:
    more = (0.5,) if op is _aten.clamp.default else ()
    for x in (torch.rand(ROWS, 8), torch.rand(3, 8), torch.rand(8, ROWS).t(), torch.rand(0, 8)):
        with Workspace().lend():
            assert torch.equal(lent.lent_form(op)(x, *more), op(x, *more))


@pytest.mark.parametrize("op", sorted(BINARY, key=str), ids=str)
@pytest.mark.parametrize(
    "other",
    [
        pytest.param((ROWS, 8), id="alike"),
        pytest.param((8,), id="row"),
        pytest.param((ROWS, 1), id="column"),
        pytest.param((), id="number"),
        pytest.param((2, ROWS, 8), id="wider"),
        pytest.param((3, 1, 8), id="widens"),
    ],
)
def test_two_operands(op: Any, other: tuple[int, ...]) -> None:
    run = lent.lent_form(op)
    x, y = torch.rand(ROWS, 8), torch.rand(other) + 1
    with Workspace().lend():
        assert torch.equal(run(x, y), op(x, y))
        assert torch.equal(run(y, x), op(y, x))
        assert torch.equal(run(x.double(), y), op(x.double(), y))
    if op is _aten.sub.Tensor:
        assert torch.equal(run(x, 2.0, alpha=3), x - 6.0)


def test_three_operands() -> None:
    run, x, row = lent.lent_form(_aten.addcmul.default), torch.rand(ROWS, 8), torch.rand(8)
    with Workspace().lend():
        for given in ((row, x, row), (x, row, row), (x, x, x), (row, x, torch.rand(2, 1, 8))):
            assert torch.equal(run(*given), _aten.addcmul.default(*given))


def test_joining() -> None:
    parts = [torch.rand(ROWS, 8), torch.rand(ROWS, 1), torch.rand(ROWS, 2)]
    join = lent.lent_form(_aten.cat.default)
    with Workspace().lend():
        assert torch.equal(join(parts, -1), torch.cat(parts, -1))
        assert torch.equal(join([parts[0], parts[0]]), torch.cat([parts[0]] * 2))
        assert torch.equal(join([torch.rand(0), parts[0]]), parts[0])  # torch lets such an empty go
        assert torch.equal(join([p.double() for p in parts], 1), torch.cat(parts, 1).double())


def test_other_ops_stay() -> None:
    assert lent.lent_form(_aten.mm.default) is _aten.mm.default


def test_results_that_somebody_holds_stay() -> None:
    x, double = torch.rand(ROWS, 8), lent.lent_form(_aten.add.Tensor)
    with Workspace().lend():
        held = double(x, x)
        place = held.data_ptr()
        assert double(held, x).data_ptr() != place
        assert torch.equal(held, 2 * x)
        del held
        assert double(x, x).data_ptr() == place
