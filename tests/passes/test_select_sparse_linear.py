"""Inputs that are mostly zeros: which products skip them, and that the answers stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GCN, GraphSAGE

import gnnfx
from gnnfx.policy import Policy, Quantize


def words(density: float, nodes: int = 60, inputs: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(nodes, inputs, generator=generator) < density).float()
    return x, torch.randint(nodes, (2, 240), generator=generator)


@pytest.mark.parametrize(
    ("density", "inputs", "outputs", "sparse"),
    [
        (0.02, 200, 16, True),
        (0.05, 200, 16, False),  # so few outputs cost less than looking values up
        (0.05, 200, 64, True),
        (0.12, 200, 64, False),
        (0.02, 100, 64, False),
    ],
)
def test_a_product_skips_zeros_where_that_pays(
    density: float, inputs: int, outputs: int, sparse: bool
) -> None:
    call = words(density, inputs=inputs)
    model = GCN(inputs, outputs, 2, 5).eval()
    opt = gnnfx.optimize(model, "fp32", call)
    assert ("sparse_linear" in opt.ir()) is sparse
    for other in (call, words(0.0, 30, inputs), words(0.5, 70, inputs)):
        x = other[0][: other[1].max() + 1]
        with torch.no_grad():
            torch.testing.assert_close(opt(x, other[1]), model(x, other[1]), rtol=1e-5, atol=1e-5)


POLICIES: list[tuple[Policy, bool]] = [
    (Policy(Quantize(8, 8, layers="all")), True),
    (Policy(Quantize(4, 8, layers="all")), True),
    (Policy(Quantize(8, 8)), False),
    (Policy(Quantize(8, 8, layers="all"), skip=("convs.0.lin",)), False),
]


@pytest.mark.parametrize(("policy", "integer"), POLICIES)
@pytest.mark.parametrize("calibrated", [True, False])
def test_integers_skip_zeros_and_make_the_same_sums(
    policy: Policy, integer: bool, calibrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = words(0.02)
    model = GCN(200, 16, 2, 5).eval()

    def optimized() -> gnnfx.OptimizedModule:
        return gnnfx.optimize(model, policy, call, calibration=[call] if calibrated else None)

    sparse = optimized()
    assert ("= quantized_sparse_linear" in sparse.ir()) is integer
    assert ("= sparse_linear" in sparse.ir()) is not integer
    if not integer:
        return
    module = "gnnfx.passes.select_quantized_sparse_linear.saves_time"
    monkeypatch.setattr(module, lambda *args: False)
    dense = optimized()
    assert "sparse_linear" not in dense.ir()
    for density in (0.0, 0.02, 0.5):
        x, edge_index = words(density)
        assert torch.equal(sparse(x, edge_index), dense(x, edge_index))


def test_all_layers_that_read_sparse_codes_skip_zeros() -> None:
    call = words(0.02)
    policy = Policy(Quantize(8, 8, layers="all"))
    sage = gnnfx.optimize(GraphSAGE(200, 16, 2, 5).eval(), policy, call, calibration=[call])
    assert sage.ir().count("= quantized_sparse_linear") == 2
    assert "= quantize(x" not in sage.ir()


def test_what_was_trained_on_sparse_inputs_converts() -> None:
    call = words(0.02)
    prepared = gnnfx.prepare(GCN(200, 16, 2, 5), "int8-dq", call).train()
    prepared(*call).sum().backward()
    integers = gnnfx.convert(prepared)
    assert "= quantized_sparse_linear" in integers.ir()
    with torch.no_grad():
        want = prepared.eval()(*call)
        torch.testing.assert_close(integers(*call), want, rtol=1e-4, atol=1e-4)
