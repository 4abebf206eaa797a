"""Inputs that are mostly zeros: which products skip them, and that the answers stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GCN

import gnnfx


def words(density: float, nodes: int = 60, inputs: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(nodes, inputs, generator=generator) < density).float()
    return x, torch.randint(nodes, (2, 240), generator=generator)


@pytest.mark.parametrize(
    ("density", "inputs", "outputs", "sparse"),
    [
        (0.02, 200, 16, True),
        (0.05, 200, 16, False),  # so few outputs cost less than looking values up
        (0.05, 200, 64, True),
        (0.12, 200, 64, False),
        (0.02, 100, 64, False),
    ],
)
def test_a_product_skips_zeros_where_that_pays(
    density: float, inputs: int, outputs: int, sparse: bool
) -> None:
    call = words(density, inputs=inputs)
    model = GCN(inputs, outputs, 2, 5).eval()
    opt = gnnfx.optimize(model, "fp32", call)
    assert ("sparse_linear" in opt.ir()) is sparse
    for other in (call, words(0.0, 30, inputs), words(0.5, 70, inputs)):
        x = other[0][: other[1].max() + 1]
        with torch.no_grad():
            torch.testing.assert_close(opt(x, other[1]), model(x, other[1]), rtol=1e-5, atol=1e-5)
