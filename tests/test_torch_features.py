"""What torch does with any module: functional calls, copies, inference mode, autocast, threads."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import gnnfx
from gnnfx.errors import InputError
from tests.models import graph, make

INPUTS = graph(30, 100)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def module(request: Any) -> gnnfx.OptimizedModule:
    return gnnfx.optimize(make("custom-gated"), request.param, graph(40, 160))


def _doubled(module: torch.nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {k: v * 2 if v.is_floating_point() else v for k, v in state.items()}


def test_functional_call_takes_the_names_of_the_state_dict(module: gnnfx.OptimizedModule) -> None:
    before = module(*INPUTS)
    other = copy.deepcopy(module)
    other.load_state_dict(_doubled(module))
    got = torch.func.functional_call(module, _doubled(module), INPUTS)
    assert torch.equal(got, other(*INPUTS))
    assert not torch.equal(got, before)
    assert torch.equal(module(*INPUTS), before)


def test_tensors_are_found_under_the_names_of_the_model() -> None:
    model = make("custom-gated")
    module = gnnfx.optimize(model, "fp32", graph(40, 160))
    weight = model.get_parameter("second.gate.weight")
    assert torch.equal(module.get_buffer("second.gate.weight"), weight)
    with pytest.raises(AttributeError, match="graph"):
        module.graph  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(module: gnnfx.OptimizedModule, dtype: torch.dtype) -> None:
    want = module(*INPUTS)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(module(*INPUTS), want)
        with pytest.raises(InputError, match="'x' must be f32"):
            module(INPUTS[0].to(dtype), INPUTS[1])


def test_autocast_around_a_program_with_matrix_products() -> None:
    module = gnnfx.optimize(make("gat-one-head"), "fp32", graph(40, 160))
    x = INPUTS[0].clone().requires_grad_()  # past the direct calls of kernels
    want = module(x, INPUTS[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x, INPUTS[1]), want)


def test_inference_mode(module: gnnfx.OptimizedModule) -> None:
    want = module(*INPUTS)
    with torch.inference_mode():
        assert torch.equal(module(*INPUTS), want)
    assert torch.equal(copy.deepcopy(module)(*INPUTS), want)


def test_threads_get_equal_results(module: gnnfx.OptimizedModule) -> None:
    graphs = [graph(30, 100, seed) for seed in range(6)]
    wanted = [module(*g) for g in graphs]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for turn in range(12):
            number = (turn + offset) % len(graphs)
            if not torch.equal(module(*graphs[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("custom-gated", torch.bfloat16), ("gin", torch.float16), ("gin-train-eps", torch.float64)],
)
def test_other_precisions_give_the_answers_of_eager(name: str, dtype: torch.dtype) -> None:
    model = make(name).to(dtype)
    (x, edge_index), (small, few) = INPUTS, graph(40, 160)
    module = gnnfx.optimize(model, "fp32", (small.to(dtype), few))
    with torch.no_grad():
        want = model(x.to(dtype), edge_index)
    assert torch.equal(module(x.to(dtype), edge_index), want)
    if isinstance(module, gnnfx.OptimizedModule) and module.report.kept:
        assert f"is {dtype}" in module.report.kept[0][1]


def test_other_precisions_are_not_quantized() -> None:
    model = make("custom-gated").bfloat16()
    with pytest.raises(InputError, match=r"'int8' takes models in float32, .* is torch.bfloat16"):
        gnnfx.optimize(model, "int8", (INPUTS[0].bfloat16(), INPUTS[1]))
