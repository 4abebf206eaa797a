"""A message passing layer that gnnfx has never heard of is optimized like PyG's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

import gnnfx


class ScaledSum(MessagePassing):
    """Sum of the neighbours' transformed features, plus the node's own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(aggr="add")
        self.neighbours = nn.Linear(in_channels, out_channels)
        self.own = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """`x` is [N, in_channels], the result [N, out_channels]."""
        out: Tensor = self.propagate(edge_index, x=self.neighbours(x)) + self.own(x)
        return out


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ScaledSum(32, 64)
        self.second = ScaledSum(64, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """`x` is [N, 32], the result [N, 8]."""
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


def main() -> None:
    """Optimize in float32, print the program, and compare the answers."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(500, 32), torch.randint(500, (2, 4000))
    model = Net().eval()
    opt = gnnfx.optimize(model, "fp32", (x, edge_index))
    print(opt.ir())
    with torch.no_grad():
        expected, out = model(x, edge_index), opt(x, edge_index)
    difference = (out - expected).abs().max() / expected.abs().max()
    print(f"largest difference, relative to the output: {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
