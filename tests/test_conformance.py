"""Every layer and model that PyG has, against eager PyG, on graphs of other sizes too."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch.utils import _pytree as pytree

import gnnfx
from tests.pyg_layers import LAYERS, NOT_CALLED, Graph


def test_every_class_is_called_or_has_a_reason_not_to_be() -> None:
    public = {
        name
        for name, value in vars(pyg).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    assert not set(LAYERS) & set(NOT_CALLED)
    assert public - set(LAYERS) - set(NOT_CALLED) == set(), "new in PyG: call it or say why not"
    assert (set(LAYERS) | set(NOT_CALLED)) - public == set(), "gone from PyG"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_equals_eager(name: str) -> None:
    layer = LAYERS[name]
    torch.manual_seed(0)
    model = layer.make().eval()
    example = layer.inputs(Graph.random(0, 20, 60))
    with torch.no_grad():
        model(*example)  # lazy parameters get their shapes
    optimized = gnnfx.optimize(model, "fp32", example)
    assert bool(optimized.report.kept) == layer.kept, optimized.report.kept
    for call in (example, layer.inputs(Graph.random(1, 20, 41, graphs=3))):
        with torch.no_grad():
            want, got = pytree.tree_leaves(model(*call)), pytree.tree_leaves(optimized(*call))
        assert len(want) == len(got)
        for expected, have in zip(want, got, strict=True):
            torch.testing.assert_close(have, expected, rtol=1e-5, atol=1e-5)
