"""What counts as the model's answer, and what as rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric import EdgeIndex

import gnnfx
from gnnfx.agreement import disagreement, is_as_exact
from gnnfx.errors import MismatchError, UnstableError
from gnnfx.frontend.trace import Traced, trace
from gnnfx.ir.program import Program
from gnnfx.verify_outputs import verify_outputs

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
    assert not is_as_exact(exact, TWO, TWO - 1e-3)
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
    optimized = gnnfx.optimize(model, "fp32", call)
    with torch.no_grad():
        torch.testing.assert_close(optimized(*call), model(*call))
    ((path, reason),) = optimized.report.kept
    assert path == ""
    assert "capturing the model does not reproduce it: output 0 is torch.float32 (4, 32)" in reason


class _Best(nn.Module):
    """Keeps the row with the largest sum over neighbours, of several that are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GCNConv(4, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv(x, edge_index)
        return x[h.sum(1).argmax()]


def test_a_choice_between_equals_is_left_to_the_model() -> None:
    """Every node sees the same neighbours, so that the order of sums picks the row."""
    torch.manual_seed(0)
    nodes = torch.arange(12)
    edge_index = torch.cartesian_prod(nodes, nodes).t()
    call = (torch.randn(12, 4), edge_index)
    model = _Best().eval()
    optimized = gnnfx.optimize(model, "fp32", call)
    assert torch.equal(optimized(*call), model(*call))
    with pytest.raises(UnstableError, match="rounding decides"):
        verify_outputs(model, *_another_choice(model, call))


def _another_choice(model: nn.Module, call: tuple[Tensor, Tensor]) -> tuple[Traced, Program]:
    traced = trace(model, call)
    other = trace(_Shifted(model), call)
    return replace(traced, checks=({"x": call[0], "edge_index": call[1]},)), other.program


class _Shifted(nn.Module):
    """Picks the next row instead."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        row: Tensor = self.model(x.roll(1, 0), edge_index)
        return row


def test_a_difference_that_noise_does_not_make_is_a_fault() -> None:
    torch.manual_seed(0)
    call = (torch.randn(12, 4), torch.randint(0, 12, (2, 40)))
    model = _Best().eval()
    with pytest.raises(MismatchError, match="fault of gnnfx") as caught:
        verify_outputs(model, *_another_choice(model, call))
    assert not isinstance(caught.value, UnstableError)
