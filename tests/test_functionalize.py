"""In-place ops and composite views: edited where nothing else can tell, left to torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch_geometric.nn import global_mean_pool
from torch_geometric.utils import scatter

from gnnfx.frontend.trace import trace

Body = Callable[[Tensor, Tensor], Tensor]


class Calls(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.body(x, edge_index)


def _write_then_read_view(x: Tensor, edge_index: Tensor) -> Tensor:
    y = x + 1
    view = y.view(-1)
    y.mul_(2)
    return view.view(-1, 4) + y


def _write_a_view(x: Tensor, edge_index: Tensor) -> Tensor:
    y = x + 1
    y[:, 0].fill_(3.0)
    return y


def _twice(x: Tensor, edge_index: Tensor) -> Tensor:
    y = x * 2
    z = y.add_(1)
    z.pow_(2)
    return y + z


def _sum(x: Tensor, edge_index: Tensor) -> Tensor:
    src, dst = edge_index
    index = dst.view(-1, 1).expand_as(x[src])
    return torch.zeros_like(x).scatter_add_(0, index, x[src])


def _power_of_degrees(x: Tensor, edge_index: Tensor) -> Tensor:
    ones = x.new_ones(edge_index.shape[1])
    degrees = scatter(ones, edge_index[1], dim_size=x.shape[0])
    degrees.pow_(-0.5)
    out: Tensor = degrees.masked_fill_(degrees == torch.inf, 0.0).view(-1, 1) * x
    return out


def _promotes(x: Tensor, edge_index: Tensor) -> Tensor:
    y = x + 1
    y.add_(edge_index[0, : x.shape[0]].view(-1, 1))
    return y


def _view_of_the_result(x: Tensor, edge_index: Tensor) -> Tensor:
    return (x + 1).relu_().view(-1, 2).view(-1, 4) * 2


BODIES: dict[str, tuple[Body, bool]] = {
    "sum": (_sum, True),
    "twice": (_twice, True),
    "power-of-degrees": (_power_of_degrees, True),
    "view-of-the-result": (_view_of_the_result, True),
    "view-read-later": (_write_then_read_view, False),
    "view-written": (_write_a_view, False),
    "other-dtype": (_promotes, False),
}


@pytest.mark.parametrize(("body", "plain"), BODIES.values(), ids=BODIES)
def test_programs_hold_no_in_place_op(
    body: Body, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured_again = []
    real = ExportedProgram.run_decompositions

    def noted(self: ExportedProgram, table: dict[object, object]) -> ExportedProgram:
        captured_again.append(self)
        return real(self, table)  # type: ignore[no-any-return]

    monkeypatch.setattr(ExportedProgram, "run_decompositions", noted)
    x, edge_index = torch.randn(6, 4), torch.randint(6, (2, 9))
    want = body(x.clone(), edge_index)
    program = trace(Calls(body), (x.clone(), edge_index)).program
    names = [i.op.split(".")[1] for i in program.instrs if i.op.startswith("aten.")]
    assert not [name for name in names if name.endswith("_")]
    (got,) = program.run(x, edge_index)[:1]
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert (not captured_again) is plain


class _NormThenPool(nn.Module):
    """The pooling expands its index to the shape of what the norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        out: Tensor = global_mean_pool(self.norm(x), batch)
        return out


def test_a_norm_keeps_the_shape_that_others_ask_for() -> None:
    model = _NormThenPool().eval()
    call = (torch.randn(6, 4), torch.randint(6, (2, 9)), torch.tensor([0, 0, 0, 1, 1, 1]))
    (got,) = trace(model, call).program.run(*call)
    torch.testing.assert_close(got, model(*call))
