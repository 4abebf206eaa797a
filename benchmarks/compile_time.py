"""CPU seconds that `gnnfx.optimize` takes, and how many of them `torch.export` needs itself.

    python benchmarks/compile_time.py

Models have three layers, except DeepGCN, which has the 28 of PyG's
`examples/ogbn_proteins_deepgcn.py`.  Each row is a process of its own with one thread.  `first` is
its first call, which also loads parts of torch, and kernels from Numba's cache on disk; `later` is
the faster of two more, and `export` the time inside `torch.export.export` during that one.
Imports of torch, PyG and gnnfx are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from environment import environment
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gnnfx

IN, HIDDEN, LAYERS, OUT = 32, 64, 3, 16
NODES, EDGES, EDGE_WIDTH = 500, 3000, 8
POLICIES = ("fp32", "int8")


class Transformer(pyg.models.basic_gnn.BasicGNN):  # type: ignore[misc]
    """TransformerConv in the frame of PyG's basic models."""

    supports_edge_weight = supports_edge_attr = supports_norm_batch = False

    def init_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        return pyg.TransformerConv(in_channels, out_channels, **kwargs)  # type: ignore[no-any-return]


class DeepGCN(nn.Module):
    """Residual GENConv layers with a learned softmax aggregation and edge features."""

    def __init__(self, layers: int = 28) -> None:
        super().__init__()
        self.nodes, self.edges = nn.Linear(IN, HIDDEN), nn.Linear(EDGE_WIDTH, HIDDEN)
        self.layers = nn.ModuleList(
            pyg.DeepGCNLayer(
                pyg.GENConv(
                    HIDDEN, HIDDEN, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer"
                ),
                nn.LayerNorm(HIDDEN),
                nn.ReLU(inplace=True),
                block="res+",
                dropout=0.1,
            )
            for _ in range(layers)
        )
        self.out = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x, edge_attr = self.nodes(x), self.edges(edge_attr)
        first: Any = self.layers[0]
        x = first.conv(x, edge_index, edge_attr)
        for layer in self.layers[1:]:
            x = layer(x, edge_index, edge_attr)
        return self.out(first.act(first.norm(x)))  # type: ignore[no-any-return]


def _pna() -> nn.Module:
    aggregators = ["mean", "min", "max", "std"]
    scalers = ["identity", "amplification", "attenuation"]
    degrees = torch.tensor([0, 5, 10, 4])
    return pyg.PNA(  # type: ignore[no-any-return]
        IN, HIDDEN, LAYERS, OUT, aggregators=aggregators, scalers=scalers, deg=degrees
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: pyg.GCN(IN, HIDDEN, LAYERS, OUT),
    "GraphSAGE": lambda: pyg.GraphSAGE(IN, HIDDEN, LAYERS, OUT),
    "GIN": lambda: pyg.GIN(IN, HIDDEN, LAYERS, OUT),
    "GAT": lambda: pyg.GAT(IN, HIDDEN, LAYERS, OUT, heads=4),
    "GATv2": lambda: pyg.GAT(IN, HIDDEN, LAYERS, OUT, heads=4, v2=True),
    "PNA": _pna,
    "Transformer": lambda: Transformer(IN, HIDDEN, LAYERS, OUT),
    "DeepGCN-28": DeepGCN,
}


def measure(name: str, policy: str) -> list[float]:
    """CPU seconds of the first call, of the faster of two more, and of export within that one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    example = [torch.randn(NODES, IN), torch.randint(NODES, (2, EDGES))]
    if name.startswith("DeepGCN"):
        example.append(torch.randn(EDGES, EDGE_WIDTH))
    export, spent = torch.export.export, 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        start = time.process_time()
        try:
            return export(*args, **kwargs)
        finally:
            spent += time.process_time() - start

    torch.export.export = timed
    calls = []
    for _ in range(3):
        spent, start = 0.0, time.process_time()
        gnnfx.optimize(model, policy, tuple(example))
        calls.append((time.process_time() - start, spent))
    return [calls[0][0], *min(calls[1:])]


def main() -> None:
    """Measure every model under every policy and print the table."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    device = environment()
    title = f"CPU seconds of gnnfx.optimize on {device['cpu']}, torch {torch.__version__}"
    table = Table(title=title)
    for column in ("model", "policy", "first", "later", "export"):
        table.add_column(column, justify="left" if column in ("model", "policy") else "right")
    for name in MODELS:
        for policy in POLICIES:
            command = [sys.executable, __file__, name, policy]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = json.loads(done.stdout.splitlines()[-1])
            table.add_row(name, policy, *(f"{s:.2f}" for s in seconds))
    Console().print(table)


if __name__ == "__main__":
    main()
