"""Two processes that train on half of the graphs each do what one does on all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

import gnnfx
from gnnfx import Policy, Quantize, Training
from tests.models import IN, OUT, graph

ESTIMATORS = {
    "moving-average": Training(observer="moving-average"),
    "percentile": Training("clipped", "percentile", 0.99, sample=None),
    "mse": Training("learned-step", "mse", sample=None),
}
SIZE = 60


def halves() -> list[tuple[Tensor, Tensor]]:
    """Two graphs of different ranges and as many nodes."""
    (x, first), (y, second) = graph(SIZE, 240, seed=3), graph(SIZE, 240, seed=4)
    return [(x, first), (3 * y, second)]


def joined() -> tuple[Tensor, Tensor]:
    (x, first), (y, second) = halves()
    return torch.cat([x, y]), torch.cat([first, second + SIZE], 1)


def prepared(name: str) -> gnnfx.PreparedModule:
    policy = Policy(Quantize(4, 4, layers="all", training=ESTIMATORS[name]))
    torch.manual_seed(0)
    return gnnfx.prepare(pyg.SAGEConv(IN, OUT), policy, graph(40, 160))


def fit(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
    """Three steps of SGD on a mean over nodes."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(*inputs).square().mean().backward()
        optimizer.step()


def work(rank: int, folder: str) -> None:
    """One of two processes; writes the states that it ends with."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    states: dict[str, Any] = {}
    for name in ESTIMATORS:
        module = prepared(name)
        fit(nn.parallel.DistributedDataParallel(module), halves()[rank])
        states[name] = module.state_dict()
    module = prepared("moving-average")
    x, edge_index = halves()[rank]
    # One process has no nodes in this step, and none may wait for it in vain.
    module(x[: 0 if rank else SIZE], edge_index[:, : 0 if rank else 240])
    states["empty"] = module.state_dict()
    torch.save(states, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one_on_all_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The children import this file by its name, from wherever the tests were started.
    root = str(Path(__file__).resolve().parent.parent)
    monkeypatch.setattr(sys, "path", [*sys.path, root])
    spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, state in first.items():
        for key, value in state.items():
            assert torch.equal(value, second[name][key]), (name, key)
    for name in ESTIMATORS:
        module = prepared(name)
        fit(module, joined())
        for key, value in module.state_dict().items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-5)
    assert int(first["empty"]["_quantizers.at_x.range.seen"]) == 1
