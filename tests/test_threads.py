"""Threads: those of the caller, each with its own graph's answer, and those that kernels run on."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gnnfx
from tests.models import graph, make

THREADS, ROUNDS = 8, 6


@pytest.mark.parametrize("policy", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
def test_threads_with_graphs_of_their_own(name: str, policy: str) -> None:
    # More graphs than are remembered: threads add and drop them while others look them up.
    graphs = [graph(40 + 13 * n, 200 + 400 * n, seed=n) for n in range(THREADS)]
    opt = gnnfx.optimize(make(name), policy, graph(40, 160), calibration=[graphs[0]])
    expected = [opt(*inputs) for inputs in graphs]
    opt.forget()

    def calls(first: int) -> list[tuple[int, Tensor]]:
        order = [(first + step) % THREADS for step in range(ROUNDS)]
        return [(n, opt(*graphs[n])) for n in order]

    with ThreadPoolExecutor(THREADS) as pool:
        results = [result for thread in pool.map(calls, range(THREADS)) for result in thread]
    assert len(results) == THREADS * ROUNDS
    for n, got in results:
        assert torch.equal(got, expected[n]), f"graph {n}"


def test_threads_with_codes_and_floats() -> None:
    graphs = [graph(60 + n, 400, seed=n) for n in range(THREADS)]
    policy = gnnfx.Policy(gnnfx.Quantize(layers="all"))
    opt = gnnfx.optimize(make("sage"), policy, graph(40, 160), calibration=graphs[:1])
    codes = [opt.quantize_inputs(x) for x, _ in graphs]
    expected = [opt(x, edge_index) for x, edge_index in graphs]

    def call(n: int) -> Tensor:
        x = codes[n] if n % 2 else graphs[n][0]
        out: Tensor = opt(x, graphs[n][1])
        return out

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(ROUNDS):
            for n, got in enumerate(pool.map(call, range(THREADS))):
                assert torch.equal(got, expected[n]), f"graph {n}"


COUNT_THREADS = """
import os
import torch
import gnnfx
import sklearn.neighbors

torch.set_num_threads(4)

rowptr = torch.arange(0, 200_001, 10, dtype=torch.int32)
src = torch.arange(200_000, dtype=torch.int32) % 20_000
x = torch.randn(20_000, 64)
(torch.randn(2000, 2000) @ torch.randn(2000, 2000)).exp()
before = len(os.listdir("/proc/self/task"))
torch.ops.gnnfx.aggregate(x, rowptr, src)
print(before, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_kernels_run_on_the_threads_of_torch() -> None:
    """Not on those of another OpenMP library in the process, such as scikit-learn's."""
    pytest.importorskip("sklearn")
    command = [sys.executable, "-c", COUNT_THREADS]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert before >= 4
    assert after == before
