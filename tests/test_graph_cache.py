"""A changed graph is noticed in every way that it can change; memory is bounded."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gnnfx
from gnnfx.graph_cache import GraphCache, _identity, _same_objects
from tests.models import graph, make


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, gnnfx.OptimizedModule]:
    model = make("gcn")
    return model, gnnfx.optimize(model, "fp32", graph(40, 160))


def _edit_in_place(edge_index: Tensor) -> Tensor:
    edge_index[0, 3] = (edge_index[0, 3] + 1) % 30
    return edge_index


def _edit_through_numpy(edge_index: Tensor) -> Tensor:
    array = edge_index.numpy()
    array[0, 3] = (array[0, 3] + 1) % 30
    return edge_index


def _edit_data(edge_index: Tensor) -> Tensor:
    edge_index.data[0, 3] = (edge_index[0, 3] + 1) % 30
    return edge_index


def _edit_in_inference_mode(edge_index: Tensor) -> Tensor:
    with torch.inference_mode():
        edge_index[0, 3] = (edge_index[0, 3] + 1) % 30
    return edge_index


def _new_tensor(edge_index: Tensor) -> Tensor:
    return edge_index.flip(1)[:, :-1].contiguous()


EDITS: dict[str, Callable[[Tensor], Tensor]] = {
    "in-place": _edit_in_place,
    "numpy": _edit_through_numpy,
    "data": _edit_data,
    "inference-mode": _edit_in_inference_mode,
    "new-tensor": _new_tensor,
}


def _same(pair: tuple[torch.nn.Module, gnnfx.OptimizedModule], x: Tensor, e: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(pair[1](x, e), pair[0](x, e), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_of_the_edge_index(
    pair: tuple[torch.nn.Module, gnnfx.OptimizedModule], edit: Callable[[Tensor], Tensor]
) -> None:
    x, edge_index = graph(30, 100)
    _same(pair, x, edge_index)
    _same(pair, x, edit(edge_index))


def test_inference_tensors(pair: tuple[torch.nn.Module, gnnfx.OptimizedModule]) -> None:
    with torch.inference_mode():
        x, edge_index = graph(30, 100)
        _same(pair, x, edge_index)
        edge_index[1, 5] = (edge_index[1, 5] + 7) % 30
        _same(pair, x, edge_index)


def test_recycled_addresses(pair: tuple[torch.nn.Module, gnnfx.OptimizedModule]) -> None:
    addresses = set()
    for seed in range(20):
        x, edge_index = graph(30, 100, seed)
        addresses.add(edge_index.data_ptr())
        _same(pair, x, edge_index)
        del x, edge_index
        gc.collect()
    assert len(addresses) < 20, "the allocator recycled no address, so nothing was tested"


def test_more_nodes_for_the_same_edges(
    pair: tuple[torch.nn.Module, gnnfx.OptimizedModule],
) -> None:
    x, edge_index = graph(30, 100)
    _same(pair, x, edge_index)
    _same(pair, torch.cat([x, x]), edge_index)


def test_edits_of_the_edge_weight() -> None:
    model = make("gcn")
    x, edge_index = graph(30, 100)
    weight = torch.rand(100)
    module = gnnfx.optimize(model, "fp32", (x, edge_index, weight))
    for _ in range(3):
        with torch.no_grad():
            want = model(x, edge_index, weight)
        torch.testing.assert_close(module(x, edge_index, weight), want, rtol=1e-4, atol=1e-5)
        weight.mul_(torch.rand(100))


def test_memory_is_bounded_and_released() -> None:
    cache = GraphCache(lambda tensors, sizes: [tensors[0] + 1], capacity=3)
    for number in range(10):
        assert cache.lookup([torch.tensor([number])], [])[0].item() == number + 1
    assert len(cache) == 3
    cache.forget()
    assert len(cache) == 0


def test_a_remembered_graph_is_computed_once() -> None:
    calls = []

    def compute(tensors: object, sizes: object) -> list[Tensor]:
        calls.append(1)
        return [torch.zeros(1)]

    cache = GraphCache(compute, capacity=2)
    first, second = torch.tensor([1]), torch.tensor([2])
    for tensor in (first, second, first.clone(), second, first):
        cache.lookup([tensor], [])
    assert len(calls) == 2
    cache.lookup([first], [5])
    assert len(calls) == 3


def test_forget_releases_the_graphs_of_a_module() -> None:
    module = gnnfx.optimize(make("gcn"), "fp32", graph(40, 160))
    module(*graph(30, 100))
    assert len(module._cache) > 0
    module.forget()
    assert len(module._cache) == 0


def test_threads_share_a_module(pair: tuple[torch.nn.Module, gnnfx.OptimizedModule]) -> None:
    graphs = [graph(30, 100, seed) for seed in range(6)]
    with torch.no_grad():
        wanted = [pair[0](*g) for g in graphs]
    failures: list[str] = []

    def work(offset: int) -> None:
        for turn in range(30):
            number = (turn + offset) % len(graphs)
            if not torch.allclose(pair[1](*graphs[number]), wanted[number], atol=1e-4):
                failures.append(f"thread {offset}, turn {turn}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_identity_is_of_objects_and_versions_not_of_values() -> None:
    first, twin = torch.tensor([1, 2]), torch.tensor([1, 2])
    seen = _identity([first])
    assert _same_objects(seen, [first])
    assert not _same_objects(seen, [twin])
    first.add_(0)
    assert not _same_objects(seen, [first])
    with torch.inference_mode():
        unversioned = torch.tensor([1, 2])
    assert not _same_objects(_identity([unversioned]), [unversioned])


@pytest.mark.parametrize("make_module", [gnnfx.optimize, gnnfx.prepare])
def test_a_module_goes_with_its_last_reference(make_module: Callable[..., torch.nn.Module]) -> None:
    module = make_module(make("gin"), "fp32", graph(40, 160))
    module(*graph(40, 160))
    alive = weakref.ref(module)
    gc.disable()
    try:
        del module
        assert alive() is None
    finally:
        gc.enable()
