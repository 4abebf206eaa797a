"""Sparse training (RigL, SET) and training towards sparse weights (ADMM, SLR)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gnnfx.errors import InputError
from gnnfx.pruning.sparse_training import SparseTraining, erk_densities
from gnnfx.pruning.train_and_prune import Admm, Slr


def regression(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network, and a target that depends on 3 of 16 inputs."""
    torch.manual_seed(seed)
    x = torch.randn(128, 16)
    net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1))
    return net, x, (x[:, :1] - 2 * x[:, 3:4] + x[:, 5:6]).detach()


def matrices(net: nn.Sequential) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("growth", ["gradient", "random"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_density_is_constant_and_absent_weights_are_zero(growth: str, optimizer: str) -> None:
    net, x, y = regression()
    weights = matrices(net)
    opt: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), 0.01)
    if optimizer == "sgd":
        opt = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True)
    sparse = SparseTraining(weights, opt, 0.25, end=60, every=5, growth=growth)  # type: ignore[arg-type]
    counts = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    first = {name: mask.clone() for name, mask in sparse.masks.items()}
    losses = []
    for _ in range(60):
        loss = (net(x) - y).square().mean()
        loss.backward()
        opt.step()
        sparse.step()
        opt.zero_grad()
        losses.append(float(loss.detach()))
        for name, mask in sparse.masks.items():
            assert int(mask.sum()) == counts[name]
            assert not bool(weights[name][~mask].any())
            for value in opt.state[weights[name]].values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    assert not bool(value[~mask].any())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(first[name], sparse.masks[name]) for name in first)


def test_rigl_grows_the_largest_gradients_and_drops_the_smallest_weights() -> None:
    weight = nn.Parameter(torch.arange(1.0, 9.0).view(2, 4))
    opt = torch.optim.SGD([weight], 0.0)
    sparse = SparseTraining({"w": weight}, opt, 0.5, end=10**6, every=1, distribution="uniform")
    sparse.masks["w"] = torch.tensor([[True, True, False, False], [True, True, False, False]])
    with torch.no_grad():
        weight.copy_(torch.tensor([[3.0, -1.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0]]))
    weight.grad = torch.tensor([[0.0, 9.0, 0.1, 5.0], [0.0, 0.0, -7.0, 0.2]])
    sparse.step()
    # Half of 4 weights move; the dropped one with gradient 9 does not come back at once.
    expected = torch.tensor([[True, False, False, True], [False, True, True, False]])
    assert torch.equal(sparse.masks["w"], expected)
    assert weight[0, 3] == weight[1, 2] == 0


def test_the_share_that_moves_falls_with_a_cosine() -> None:
    net, _, _ = regression()
    sparse = SparseTraining(matrices(net), torch.optim.SGD(net.parameters(), 0.1), 0.5, end=100)
    shares = []
    for number in (0, 50, 100):
        sparse._number = number
        shares.append(sparse.drop_share())
    assert shares == pytest.approx([0.5, 0.25, 0.0])


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_erk_keeps_the_overall_density_and_never_overfills(density: float) -> None:
    shapes = {"first": (16, 1433), "second": (7, 16), "third": (3, 3)}
    found = erk_densities(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(found[name] * sizes[name] for name in shapes)
    assert total == pytest.approx(density * sum(sizes.values()))
    assert all(0 < share <= 1 for share in found.values())
    assert found["second"] > found["first"]


def test_gradients_must_still_be_there() -> None:
    net, _, _ = regression()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    sparse = SparseTraining(matrices(net), opt, 0.5, end=100, every=1)
    with pytest.raises(InputError, match=r"'0.weight' has no gradient; call step\(\) before"):
        sparse.step()


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_wrong_density_is_named(density: float) -> None:
    net, _, _ = regression()
    with pytest.raises(InputError, match=r"density must lie in \(0, 1\]"):
        SparseTraining(matrices(net), torch.optim.SGD(net.parameters(), 0.1), density, end=10)


@pytest.mark.parametrize("method", [Admm, Slr])
def test_weights_approach_their_pruned_copies(method: type[Admm]) -> None:
    net, x, y = regression()
    opt = torch.optim.Adam(net.parameters(), 0.01)
    pull = method({"0.weight": net.get_parameter("0.weight")}, 0.75, rho=0.05)
    before = pull.gap()
    for _ in range(60):
        for _ in range(5):
            opt.zero_grad()
            loss = (net(x) - y).square().mean()
            (loss + pull.penalty()).backward()
            opt.step()
        pull.step(float(loss.detach()))
    assert pull.gap() < before / 2
    dense = float((net(x) - y).square().mean().detach())
    masks = pull.prune()
    assert int(masks["0.weight"].sum()) == 16 * 24 // 4
    assert not bool(net.get_parameter("0.weight")[~masks["0.weight"]].any())
    assert float((net(x) - y).square().mean().detach()) < dense + 1.0


def test_slr_keeps_its_multipliers_where_the_lagrangian_rises() -> None:
    net, _, _ = regression()
    pull = Slr({"0.weight": net.get_parameter("0.weight")}, 0.5)
    pull.step(1.0)
    duals = pull.duals["0.weight"].clone()
    pull.step(100.0)
    assert torch.equal(pull.duals["0.weight"], duals)


def test_a_wrong_ratio_or_no_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"ratio must lie in \[0, 1\), got 1.0"):
        Admm({}, 1.0)
    with pytest.raises(InputError, match="weights must name one weight or more"):
        Slr({}, 0.5)
