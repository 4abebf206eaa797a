"""What counts as the model's answer, and what as rounding."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric import EdgeIndex

import gnnfx
from gnnfx.agreement import disagreement, is_as_exact

ONE, TWO = torch.ones(3), torch.full((3,), 2.0)
NAN = torch.tensor([1.0, float("nan"), 1.0])


@pytest.mark.parametrize(
    "have", [TWO, ONE[:2], ONE.double(), NAN, torch.tensor([1.0, float("inf"), 1.0])]
)
def test_what_differs(have: Tensor) -> None:
    assert disagreement(ONE, have) is not None


@pytest.mark.parametrize("want", [ONE, NAN, torch.zeros(0), torch.ones(3, dtype=torch.bool)])
def test_what_does_not(want: Tensor) -> None:
    assert disagreement(want, want.clone()) is None


def test_rounding_excuses_no_other_shape() -> None:
    exact = ONE.double()
    assert is_as_exact(exact, ONE + 1e-3, ONE - 5e-3)
    assert not is_as_exact(exact, ONE + 1e-3, TWO)
    assert not is_as_exact(exact, ONE[:2], ONE)
    assert not is_as_exact(exact, NAN, ONE)


@pytest.mark.filterwarnings("ignore:Sparse ")
def test_an_edge_index_that_says_how_many_targets_there_are() -> None:
    """The program does not know; the model is kept rather than given another number of rows."""
    edge_index = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])
    sized = EdgeIndex(edge_index, sort_order="col", sparse_size=(4, 2))
    model = pyg.GraphConv((8, 16), 32).eval()
    call = ((torch.randn(4, 8), None), sized)
    with torch.no_grad():
        want, got = model(*call), gnnfx.optimize(model, "fp32", call)(*call)
    torch.testing.assert_close(got, want)
