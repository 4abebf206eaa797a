"""Fake-quantizers: forward as the kernels round, and each estimator's gradient by its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gnnfx.fake_quantize import DynamicQuantizer, FakeQuantizer, ProtectiveMask, WeightQuantizer
from gnnfx.kernels.quantize import fake_quantize_reference
from gnnfx.training_policy import Estimator, Training


def values(rows: int = 40, channels: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, generator=generator)


def clipping(estimator: Estimator, bits: int = 4) -> FakeQuantizer:
    """A quantizer of [-1, 1] that is frozen, so that values beyond are clipped."""
    quantizer = FakeQuantizer("h", bits, Training(estimator, "minmax"))
    quantizer(torch.tensor([[-1.0, 1.0]]))
    quantizer.frozen.fill_(True)
    return quantizer


def test_forward_is_what_the_kernels_simulate() -> None:
    quantizer = clipping("clipped")
    want = fake_quantize_reference(values(), *quantizer.qparams(), 4)
    assert torch.equal(quantizer(values()), want)
    assert len(want.unique()) <= 16


def test_straight_through_passes_every_gradient() -> None:
    x = values().requires_grad_()
    clipping("straight-through")(x).mul(values(seed=1)).sum().backward()
    assert torch.equal(x.grad, values(seed=1))  # type: ignore[arg-type]


def test_clipped_stops_gradients_at_the_end_codes() -> None:
    quantizer, x = clipping("clipped"), values().requires_grad_()
    y = quantizer(x)
    y.mul(values(seed=1)).sum().backward()
    scale, zero_point = quantizer.qparams()
    codes = (y / scale + zero_point).round()
    inside = (codes > -8) & (codes < 7)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(x.grad, values(seed=1) * inside)  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_rounds_to_zero_keeps_learning_where_zero_is_an_end_code(sign: int) -> None:
    quantizer = FakeQuantizer("h", 4, Training("clipped", "minmax"))
    x = (sign * torch.tensor([[0.01, 0.02, 0.5, 1.0]])).requires_grad_()
    y = quantizer(x)
    assert y[0, :2].tolist() == [0.0, 0.0]
    y.sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 1.0, 0.0]]  # type: ignore[union-attr]


def test_learned_steps_have_the_gradient_of_their_formula() -> None:
    quantizer, x = clipping("learned-step"), values().requires_grad_()
    grad = values(seed=1)
    quantizer(x).mul(grad).sum().backward()
    scale, zero_point = (t.detach().double() for t in quantizer.qparams())
    steps = x.detach().double() / scale + zero_point
    codes = steps.round().clamp(-8, 7)
    inside = (steps >= -8.5) & (steps <= 7.5)
    slope = torch.where(inside, codes - steps, codes - zero_point)
    want = (grad * slope).sum() / math.sqrt(x.numel() * 7)
    want = want * scale  # the step is scale * exp(stretch)
    torch.testing.assert_close(quantizer.stretch.grad, want.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, grad * inside)


def test_protected_rows_pass_both_ways_and_leave_the_range_alone() -> None:
    quantizer = FakeQuantizer("h", 4, Training("clipped", "minmax"))
    x = values()
    x[3] = 100.0
    x.requires_grad_()
    protected = torch.arange(40) == 3
    y = quantizer(x, protected)
    y.sum().backward()
    assert torch.equal(y[3], x[3])
    assert float(quantizer.range.hi) < 10
    assert x.grad is not None
    assert bool((x.grad[3] == 1).all())
    quantizer.eval()
    assert float(quantizer(x, protected)[3].max().detach()) < 10


def test_rows_of_edges_go_by_their_owner() -> None:
    quantizer = FakeQuantizer("m", 4, Training(observer="minmax"))
    x, owner = values(), torch.arange(40) % 5
    y = quantizer(x, torch.tensor([True, False, False, False, False]), owner)
    assert torch.equal(y[owner == 0], x[owner == 0])
    assert not torch.equal(y[owner == 1], x[owner == 1])


@pytest.mark.parametrize("estimator", ["clipped", "straight-through", "learned-step"])
@pytest.mark.parametrize("learned_norm", [False, True])
def test_rows_are_scaled_before_they_are_rounded(estimator: Estimator, learned_norm: bool) -> None:
    norm = torch.linspace(0.1, 2.0, 40)[:, None].requires_grad_(learned_norm)
    protected = torch.arange(40) % 7 == 3
    results = []
    for scaled_by_quantizer in (True, False):
        torch.manual_seed(0)
        quantizer = FakeQuantizer("h", 4, Training(estimator, "percentile", 0.9, sample=64))
        x = values().requires_grad_()
        if scaled_by_quantizer:
            y = quantizer(x, protected, row_scale=norm)
        else:
            y = quantizer(x * norm, protected)
        y.mul(values(seed=1)).sum().backward()
        parts = [y.detach(), x.grad, *quantizer.qparams()]
        parts += [norm.grad] if learned_norm else []
        norm.grad = None
        results.append(parts)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert torch.equal(results[0][0][protected], (values() * norm.detach())[protected])


def test_large_tensors_go_past_the_caches() -> None:
    """Rows that begin anywhere in a cache line, and an end that fills none."""
    x = torch.randn(4201, 1001, generator=torch.Generator().manual_seed(0))
    qparams, kept = (torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)), x[:, 0] > 1
    got = torch.ops.gnnfx.fake_quantize(x, *qparams, 4, None, kept)
    assert torch.equal(got, fake_quantize_reference(x, *qparams, 4, None, kept))


def test_masks_follow_the_rank_and_the_seed() -> None:
    mask, rank = ProtectiveMask(0.1, 0.5), torch.linspace(0, 1, 20_000)
    torch.manual_seed(0)
    drawn = mask(rank)
    assert float(drawn[:2000].float().mean()) == pytest.approx(0.12, abs=0.03)
    assert float(drawn[-2000:].float().mean()) == pytest.approx(0.48, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(mask(rank), drawn)
    assert mask.eval()(rank) is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_are_affine_unless_symmetric_is_asked_for(symmetric: bool) -> None:
    quantizer = FakeQuantizer("h", 8, Training(observer="minmax", symmetric=symmetric))
    quantizer(torch.tensor([[-1.0, 3.0]]))
    scale, zero_point = quantizer.qparams()
    want = (3 / 127, 0) if symmetric else (4 / 255, -64)
    assert (float(scale), int(zero_point)) == pytest.approx(want)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("estimator", ["straight-through", "learned-step"])
def test_weights_have_a_step_an_output_channel(bits: int, estimator: Estimator) -> None:
    quantizer = WeightQuantizer(40, bits, Training(estimator))
    weight = (values() * torch.arange(1, 41)[:, None]).requires_grad_()
    y = quantizer(weight)
    scale = quantizer.step(weight.detach()).detach()
    assert torch.equal(
        (y / scale[:, None]).round().abs().amax(1), torch.full((40,), 2 ** (bits - 1) - 1.0)
    )
    y.square().sum().backward()
    assert weight.grad is not None
    assert all(p.grad is not None for p in quantizer.parameters())


def test_edge_weights_are_rounded_by_their_own_range() -> None:
    x = values().requires_grad_()
    y = DynamicQuantizer()(x)
    torch.testing.assert_close(y, x, rtol=0, atol=float(x.abs().max().detach()) / 127)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["straight-through", "clipped", "learned-step"])
def test_gradients_of_several_forwards_add_up(estimator: Estimator) -> None:
    quantizer = FakeQuantizer("h", 4, Training(estimator, "minmax"))
    x = values().requires_grad_()
    (quantizer(x).sum() + quantizer(2 * x).sum()).backward()
    assert x.grad is not None
    assert float(x.grad.max()) == 3.0
