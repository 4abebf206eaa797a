"""Seconds that `gnnfx.optimize` takes: the first time on a machine, and after.

    python benchmarks/compile_time.py

Each measurement is a process of its own.  `first` has an empty folder for Numba's machine code, as
a new machine has; `after` finds what `first` has left there.  The time is that of the call alone
and, behind the slash, of the call and the first forward pass; imports are not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from rich.console import Console
from rich.table import Table

MODELS = ("GCN", "GraphSAGE", "GIN", "GAT")
POLICIES = ("fp32", "int8")
_SCRIPT = """
import json, sys, time
import torch, torch_geometric.nn as pyg, gnnfx
name, policy = sys.argv[1:]
torch.manual_seed(0)
model = getattr(pyg, name)(128, 64, 2, 40, **({"heads": 4} if name == "GAT" else {})).eval()
x, edge_index = torch.randn(20_000, 128), torch.randint(20_000, (2, 200_000))
start = time.perf_counter()
data = [(x, edge_index)] if policy != "fp32" else None
opt = gnnfx.optimize(model, policy, (x, edge_index), calibration=data)
middle = time.perf_counter()
opt(x, edge_index)
print(json.dumps([middle - start, time.perf_counter() - start]))
"""


def measure(name: str, policy: str, cache: str) -> str:
    """'seconds of optimize / with the first call' in a new process."""
    command = [sys.executable, "-c", _SCRIPT, name, policy]
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    call, total = json.loads(done.stdout.splitlines()[-1])
    return f"{call:.2f} / {total:.2f}"


def main() -> None:
    """Measure every model under every policy and print the table."""
    table = Table(title="seconds of gnnfx.optimize / with the first call")
    for column in ("model", "policy", "first", "after"):
        table.add_column(column, justify="left" if column in ("model", "policy") else "right")
    for name in MODELS:
        for policy in POLICIES:
            with tempfile.TemporaryDirectory() as cache:
                first = measure(name, policy, cache)
                table.add_row(name, policy, first, measure(name, policy, cache))
    Console().print(table)


if __name__ == "__main__":
    main()
