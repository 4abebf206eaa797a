"""Train a GCN on scikit-learn's digits and compare the three policies."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

import gnnfx
from gnnfx.demo import accuracy, load, train
from gnnfx.measure import parameter_bytes


def main() -> None:
    """Print test accuracy and parameter bytes of the model and of each policy."""
    data, classes = load("digits")
    model = train("GCN", data, classes, epochs=100)
    arguments = (data.x, data.edge_index)
    table = Table("module", "test accuracy", "parameter bytes")
    with torch.no_grad():
        reference = accuracy(model(*arguments), data.y, data.test_mask)
    table.add_row("eager", f"{reference:.3f}", f"{parameter_bytes(model):,}")
    for policy in ("fp32", "int8", "int4"):
        opt = gnnfx.optimize(model, policy, arguments, calibration=[arguments])
        with torch.no_grad():
            found = accuracy(opt(*arguments), data.y, data.test_mask)
        table.add_row(policy, f"{found:.3f}", f"{parameter_bytes(opt):,}")
        assert found > reference - 0.05, f"{policy} loses too much accuracy"
    Console().print(table)


if __name__ == "__main__":
    main()
