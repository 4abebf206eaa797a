"""Training on inputs that are mostly zeros: the values and gradients of dense products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import gnnfx
from gnnfx.backend import sparse_input
from gnnfx.fake_quantize import FakeQuantizer
from gnnfx.training_policy import Estimator, Training, TrainingObserver
from tests.models import graph

WORDS = 200
MODELS = [GCN, GraphSAGE, GIN, GAT]


def _words(rows: int, share: float = 0.05) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    kept = torch.rand(rows, WORDS, generator=generator) < share
    return torch.rand(rows, WORDS, generator=generator) * kept


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each product so far was sparse."""
    seen: list[bool] = []
    real = sparse_input.nonzeros

    def spy(x: Tensor) -> sparse_input.Csr | None:
        found = real(x)
        seen.append(found is not None)
        return found

    monkeypatch.setattr("gnnfx.backend.training_graph.nonzeros", spy)
    return seen


def _gradients(module: nn.Module, x: Tensor, edge_index: Tensor) -> tuple[Tensor, list[Tensor]]:
    out = module(x, edge_index)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    return out, [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("build", MODELS)
def test_values_and_gradients_are_those_of_the_dense_product(
    build: type[nn.Module], products: list[bool]
) -> None:
    torch.manual_seed(0)
    model = build(WORDS, 64, num_layers=2, out_channels=5)
    x, edge_index = _words(40), graph(40, 150)[1]
    prepared = gnnfx.prepare(model, "fp32", (x, edge_index))
    products.clear()
    got, want = (_gradients(m.train(), x, edge_index) for m in (prepared, model.double().float()))
    assert products == [True]
    torch.testing.assert_close(got[0], want[0])
    assert len(got[1]) == len(want[1])
    for mine, theirs in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    converted = gnnfx.convert(prepared)
    torch.testing.assert_close(converted(x, edge_index), model.eval()(x, edge_index))


class _Selected(nn.Module):
    """A model of rows alone, for the nodes that edges start from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y.index_select(0, edge_index[0])


def _dropped() -> nn.Module:
    """Words, dropped, as they are: the weight is the identity."""

    linear = nn.Linear(WORDS, WORDS)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return _Selected(nn.Sequential(nn.Dropout(0.75), linear))


def test_dropout_draws_for_each_value(products: list[bool]) -> None:
    rows = torch.arange(2000)
    x, edge_index = _words(2000, 0.1), torch.stack([rows, rows])
    prepared = gnnfx.prepare(_dropped(), "fp32", (x, edge_index))
    torch.manual_seed(0)
    out, again = prepared(x, edge_index), prepared(x, edge_index)
    assert all(products)
    assert not torch.equal(out, again)
    kept = out != 0
    torch.testing.assert_close(out[kept], 4 * x[kept])
    assert abs(float(kept.sum() / (x != 0).sum()) - 0.25) < 0.01
    torch.testing.assert_close(prepared.eval()(x, edge_index), x)


def test_what_needs_the_dense_product_gets_it(products: list[bool]) -> None:
    """Gradients towards the input, other densities, and mixed precision."""
    torch.manual_seed(0)
    model = GCN(WORDS, 64, num_layers=1)
    x, edge_index = _words(40), graph(40, 150)[1]
    prepared = gnnfx.prepare(model, "fp32", (x, edge_index)).eval()
    model.eval()
    products.clear()
    towards = [x.clone().requires_grad_() for _ in range(2)]
    for module, leaf in zip((prepared, model), towards, strict=True):
        module(leaf, edge_index).square().sum().backward()
    torch.testing.assert_close(towards[0].grad, towards[1].grad)
    dense = _words(40, 1.0)
    torch.testing.assert_close(prepared(dense, edge_index), model(dense, edge_index))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = prepared(x, edge_index), model(x, edge_index)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert products == [False] * 3


def test_relu_behind_the_product(products: list[bool]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WORDS, 64), nn.ReLU(), nn.Linear(64, 3), nn.ReLU())
    x, edge_index = _words(40), graph(40, 150)[1]
    wrapped = _Selected(model)
    prepared = gnnfx.prepare(wrapped, "fp32", (x, edge_index))
    products.clear()
    for rows in (x, _words(40, 1.0)):
        got, want = (_gradients(m.train(), rows, edge_index) for m in (prepared, wrapped))
        torch.testing.assert_close(got[0], want[0])
        torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)
    assert products == [True, False]


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse"])
@pytest.mark.parametrize("estimator", ["clipped", "learned-step"])
def test_what_is_not_zero_is_rounded_and_protected_as_all_values_are(
    estimator: Estimator, observer: TrainingObserver
) -> None:
    training = Training(estimator, observer, 0.9, sample=None)
    all_values, some = (FakeQuantizer("x", 4, training) for _ in range(2))
    protected, owner = torch.arange(9) % 3 == 1, torch.arange(40) % 9
    for x in (_words(40, 0.04), _words(40, 0.04) - 0.3 * (_words(40, 0.04) > 0.5)):
        want = all_values(x, protected, owner)
        csr = sparse_input.nonzeros(x)
        assert csr is not None
        got, held = sparse_input.rounded(some, x, csr, protected, owner)
        if estimator == "learned-step":
            assert held is None
        else:
            rows = torch.repeat_interleave(csr[0].diff())
            got = torch.zeros_like(x).index_put((rows, csr[1]), held[2])  # type: ignore[index]
        assert torch.equal(got, want)
        for mine, theirs in zip(some.buffers(), all_values.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("build", MODELS)
def test_quantized_training_reads_what_is_not_zero(
    build: type[nn.Module], products: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, edge_index = _words(40, 0.04), graph(40, 150)[1]
    results = []
    for csr_of in (sparse_input.nonzeros, lambda x: None):
        torch.manual_seed(0)
        model = build(WORDS, 64, num_layers=2, out_channels=5)
        prepared = gnnfx.prepare(model, "int8-dq", (x, edge_index))
        monkeypatch.setattr("gnnfx.backend.training_graph.nonzeros", csr_of)
        torch.manual_seed(1)
        results.append(_gradients(prepared.train(), x, edge_index))
    # A code at a tie is another one, where sums have another order.
    for got, want in zip(results[0][1], results[1][1], strict=True):
        assert (got - want).norm() < 0.1 * want.norm()
    assert (results[0][0] - results[1][0]).norm() < 0.05 * results[1][0].norm()
    assert products[0]
