"""Optimize a model of several kinds of nodes: papers and authors, who writes and cites what."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import SAGEConv, to_hetero

import gnnfx


class TwoLayers(nn.Module):
    """GraphSAGE for one kind of nodes; `to_hetero` repeats it for each kind of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv((-1, -1), 64), SAGEConv((-1, -1), 8)

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def literature(papers: int, authors: int) -> HeteroData:
    """Random papers and authors; every paper has two authors and cites three papers."""
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.randn(papers, 32), torch.randn(authors, 16)
    written = torch.arange(papers).repeat_interleave(2)
    writer = torch.randint(authors, (2 * papers,))
    data["author", "writes", "paper"].edge_index = torch.stack([writer, written])
    data["paper", "written_by", "author"].edge_index = torch.stack([written, writer])
    data["paper", "cites", "paper"].edge_index = torch.randint(papers, (2, 3 * papers))
    return data


def main() -> None:
    """Compare the model with its float32 and INT8 forms on another graph than the example."""
    torch.manual_seed(0)
    example, other = literature(300, 80), literature(2000, 500)
    model = to_hetero(TwoLayers(), example.metadata()).eval()
    with torch.no_grad():
        model(example.x_dict, example.edge_index_dict)  # lazy layers learn their widths
        for policy in ("fp32", "int8"):
            call = (example.x_dict, example.edge_index_dict)
            opt = gnnfx.optimize(model, policy, call, calibration=[call])
            want = model(other.x_dict, other.edge_index_dict)
            got = opt(other.x_dict, other.edge_index_dict)
            for kind, values in want.items():
                error = float((got[kind] - values).norm() / values.norm())
                print(f"{policy}, {kind}: {error:.1e} of the output is noise")
                assert error < (1e-5 if policy == "fp32" else 0.1)


if __name__ == "__main__":
    main()
