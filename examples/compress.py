"""Prune half of a GCN's channels, train it with rounding, and run it on integers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from torch_geometric.utils import stochastic_blockmodel_graph

import gnnfx
from gnnfx import Policy, Prune, Quantize


def planted(nodes: int = 400, classes: int = 4) -> Data:
    """A random graph with more edges inside of classes, which also shift the features."""
    torch.manual_seed(0)
    y = torch.arange(nodes) * classes // nodes
    x = torch.randn(nodes, 32) + torch.nn.functional.one_hot(y, 32)
    sizes = [nodes // classes] * classes
    within = 0.01 + 0.05 * torch.eye(classes)
    edge_index = stochastic_blockmodel_graph(sizes, within)
    part = torch.arange(nodes) % 3
    masks = {name: part == n for n, name in enumerate(("train_mask", "val_mask", "test_mask"))}
    return Data(x=x, edge_index=edge_index, y=y, **masks)


def main() -> None:
    """Train in float, compress, and print what each stage led to."""
    data = planted()
    model = GCN(32, 32, 2, out_channels=4, dropout=0.2)
    prepared = gnnfx.prepare(model, "fp32", (data.x, data.edge_index))
    gnnfx.finetune(prepared, data, epochs=30)
    model.load_state_dict(prepared.state_dict())

    # Half of the channels go in steps while the model trains; integers run what is left.
    prune = Prune(ratio=0.5, schedule="cubic", end=10, every=2)
    policy = Policy(prune=prune, quantize=Quantize(layers="all"))
    with TemporaryDirectory() as folder:
        found = gnnfx.compress(model, policy, data, epochs=30, checkpoint_dir=Path(folder))
    Console().print(found.report.table())

    dense, *_, integers = found.report.stages
    assert dense.weight_bytes is not None
    assert integers.weight_bytes is not None
    assert integers.weight_bytes < dense.weight_bytes / 4
    assert integers.validation > dense.validation - 0.1


if __name__ == "__main__":
    main()
