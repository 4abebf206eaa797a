"""Graphs without nodes, where a model counts graphs by the largest entry of its batch vector."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import gnnfx


class Pooled(nn.Module):
    def __init__(self, pool: str) -> None:
        super().__init__()
        self.conv, self.pool = pyg.GraphConv(4, 3), getattr(pyg, f"global_{pool}_pool")

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.pool(self.conv(x, edge_index), batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("pool", ["add", "max"])
def test_no_node_is_no_graph(pool: str) -> None:
    model = Pooled(pool).eval()
    batch = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    example = (torch.randn(7, 4), torch.randint(7, (2, 20)), batch)
    optimized = gnnfx.optimize(model, "fp32", example)
    empty = (torch.empty(0, 4), torch.empty(2, 0, dtype=torch.int64), batch[:0])
    for inputs in (example, empty):
        with torch.no_grad():
            torch.testing.assert_close(optimized(*inputs), model(*inputs))
