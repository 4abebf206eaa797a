"""Whole programs as text, after the float pipeline; a change of these files is read like code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch_geometric.nn as pyg
from torch import nn

from gnnfx.history import record
from gnnfx.ir.text import dump, parse
from gnnfx.pipeline import float_passes
from gnnfx.policy import PRESETS
from tests.models import IN, OUT, graph

MODELS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: pyg.GCN(IN, 16, 2, OUT),
    "gat": lambda: pyg.GAT(IN, 16, 2, OUT, heads=4),
    "sage": lambda: pyg.GraphSAGE(IN, 16, 2, OUT),
    "gin": lambda: pyg.GIN(IN, 16, 2, OUT),
}


@pytest.mark.parametrize("name", MODELS)
def test_program_after_the_float_passes(name: str, golden: Callable[[str, str], None]) -> None:
    history = record(MODELS[name](), "fp32", graph(40, 200))
    text = dump(history.steps[len(float_passes(PRESETS["fp32"]))].program)
    assert dump(parse(text)) == text
    golden(name, text)
