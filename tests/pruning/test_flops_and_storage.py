"""Operation counts against hand calculation, and packed weights against the dense ones."""

from __future__ import annotations

import pytest
import torch

import gnnfx
from gnnfx import Policy, Prune, Pruner
from gnnfx.errors import InputError
from gnnfx.ir.text import parse
from gnnfx.pruning.flops import count_flops, dense_training, sparse_training, train_and_prune
from gnnfx.pruning.storage import pack, pack_state, packed_bytes, unpack, unpack_state
from tests.models import graph, make

LAYER = """\
program layer(x: f32[N, 3], src: i64[E], dst: i64[E])
  w: f32[4, 3] = param('w')
  b: f32[4] = param('b')
  n: int[N] = aten.sym_size.int(x, 0)
  h: f32[N, 4] = aten.linear.default(x, w, b)
  m: f32[E, 4] = gather(h, src)
  s: f32[N, 4] = scatter(m, dst, n, 'sum')
  y: f32[N, 4] = aten.relu.default(s)
  return (y,)
"""


def test_flops_of_a_layer() -> None:
    program = parse(LAYER)
    index = torch.tensor([0, 1, 1, 3, 4, 4, 4])
    inputs = (torch.randn(5, 3), index, index)
    flops = count_flops(program, inputs)
    assert flops.linear == 5 * (2 * 12 + 4)
    assert flops.message_passing == 7 * 4
    assert flops.other == 5 * 4
    assert flops.total == flops.linear + flops.message_passing + flops.other
    sparse = program.tensors["w"].clone()
    sparse[0] = 0
    assert count_flops(program, inputs, {"w": sparse}).linear == 5 * (2 * 9 + 4)


def test_flops_of_training() -> None:
    assert dense_training(100, 10) == 3000
    assert sparse_training(10, 100, 11, every=10, growth="gradient") == pytest.approx(420)
    assert sparse_training(10, 100, 11, every=10, growth="random") == 330
    assert train_and_prune(10, 100, 2, 3) == 3 * (200 + 30)


def test_a_pruner_counts_what_is_left() -> None:
    model, inputs = make("gcn"), graph(30, 100)
    pruner = Pruner(model, Prune(ratio=0.5, method="fine-grained"), inputs)
    before = pruner.flops()
    pruner.step()
    after = pruner.flops()
    assert after.linear == before.linear // 2
    assert after.message_passing == before.message_passing


@pytest.mark.parametrize(
    ("sparsity", "form"),
    [(0.0, "dense"), (0.5, "bitmap"), (0.9, "bitmap"), (0.99, "rowptr"), (1.0, "rowptr")],
)
@pytest.mark.parametrize("shape", [(16, 1433), (7, 16, 40)])
def test_packing_is_exact_and_chooses_the_smallest_form(
    sparsity: float, form: str, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=generator)
    tensor[torch.rand(shape, generator=generator) < sparsity] = 0.0
    packed = pack(tensor)
    assert form in packed
    assert packed_bytes(packed) <= tensor.numel() * 4
    assert torch.equal(unpack(packed), tensor)


def test_packing_keeps_negative_zero_and_nan() -> None:
    tensor = torch.zeros(8, 64)
    tensor[1, 2], tensor[3, 4] = -0.0, torch.nan
    back = unpack(pack(tensor))
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


def test_state_dicts_are_saved_as_tensors(tmp_path: object) -> None:
    state = make("gcn").state_dict()
    packed = pack_state(state)
    torch.save(packed, f"{tmp_path}/packed.pt")
    back = unpack_state(torch.load(f"{tmp_path}/packed.pt", weights_only=True))
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_masked_weights_need_little_storage() -> None:
    model = make("gcn")
    pruner = Pruner(model, Prune(ratio=0.75, method="fine-grained"), graph(30, 100))
    pruner.step()
    weight = model.get_parameter("convs.0.lin.weight")
    # A quarter of 320 values, one bit for each place, and the shape.
    assert packed_bytes(pack(weight)) == 80 * 4 + 320 // 8 + 2 * 4


def test_other_parts_are_an_error() -> None:
    with pytest.raises(InputError, match=r"expected a packed tensor, got the parts \['bits'\]"):
        unpack({"bits": torch.zeros(1)})


def test_the_report_counts_stored_bytes() -> None:
    policy = Policy(prune=Prune(ratio=0.9, method="global"))
    layers = gnnfx.optimize(make("gcn"), policy, graph(30, 100)).report.layers
    assert any("set to zero, stored in" in text for layer in layers for text in layer.done)
    assert any("runs dense, which is faster" in text for layer in layers for text in layer.left)
