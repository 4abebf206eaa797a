"""One module called from several Python threads at once: every call gets its own graph's answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
