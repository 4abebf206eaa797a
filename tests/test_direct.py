"""The function that a call runs computes what the module does, on the module's tensors of today."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from gnnfx.backend.direct import direct_forward

ROWPTR, SRC = torch.tensor([0, 2, 3]).int(), torch.tensor([0, 1, 1]).int()


class _Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
        self.inner.register_buffer("scale", torch.tensor(0.5))


def _module() -> fx.GraphModule:
    """Tensors of both kinds, an op by name and position, a slice, an infinity, nested results."""
    graph = fx.Graph()
    x, rowptr, src = (graph.placeholder(name) for name in ("x", "rowptr", "src"))
    weight, scale = graph.get_attr("inner.weight"), graph.get_attr("inner.scale")
    total = graph.call_function(
        torch.ops.gnnfx.aggregate.default, (x, rowptr), {"src": src, "bias": weight}
    )
    scaled = graph.call_function(torch.ops.aten.mul.Tensor, (total, scale))
    ends = graph.call_function(operator.getitem, (scaled, (slice(None), slice(0, 2, None))))
    least = graph.call_function(
        torch.ops.aten.clamp.default, (ends,), {"min": float("-inf"), "max": 3}
    )
    parts = graph.call_function(torch.ops.aten.split_with_sizes.default, (least, [1, 1], 1))
    last = graph.call_function(operator.getitem, (parts, -1))
    graph.output((scaled, [last, None, 7]))
    return fx.GraphModule(_Owner(), graph)


def _verify(module: fx.GraphModule) -> None:
    x = torch.randn(2, 3)
    direct = direct_forward(module, module.graph)
    (expected, (last, *others)) = module(x, ROWPTR, SRC)
    (found, (found_last, *found_others)) = direct(x, ROWPTR, SRC)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_last, last)
    assert found_others == others == [None, 7]


def test_it_computes_what_the_module_does() -> None:
    _verify(_module())


def test_tensors_are_those_of_today() -> None:
    module = _module()
    direct = direct_forward(module, module.graph)
    x = torch.randn(2, 3)
    inner = module.get_submodule("inner")
    inner.weight = nn.Parameter(torch.zeros(3), requires_grad=False)
    inner.register_buffer("scale", torch.tensor(2.0))
    total, _ = direct(x, ROWPTR, SRC)
    torch.testing.assert_close(total, 2 * torch.stack([x[0] + x[1], x[1]]))


def test_values_live_no_longer_than_they_are_used() -> None:
    """A large result that nothing reads any more must not stay until the function ends."""
    alive: list[int] = []
    count = 0

    class Counted:
        def __init__(self) -> None:
            nonlocal count
            count += 1

        def __del__(self) -> None:
            nonlocal count
            count -= 1

    def make(_: object) -> Counted:
        alive.append(count)
        return Counted()

    graph = fx.Graph()
    value: fx.Node = graph.placeholder("x")
    for _ in range(4):
        value = graph.call_function(make, (value,))
    graph.output(value)
    direct = direct_forward(nn.Module(), graph)
    direct(Tensor())
    assert alive == [0, 1, 1, 1]
