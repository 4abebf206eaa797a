"""torch.export of an optimized module: one file, graphs of other sizes, and the way back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gnnfx
from tests.models import UGLY, GraphClassifier, graph, make

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
GRAPHS = [graph(30, 100), graph(50, 300), *(make_graph() for make_graph in UGLY.values())]


def exported(module: nn.Module, example: tuple[Tensor, ...], **kwargs: Any) -> Any:
    """The exported program, rows and edges free."""
    dims = tuple({int(t.shape[0] == 2 and t.dim() == 2): Dim.DYNAMIC} for t in example)
    # An optimized module takes *args, which count as one argument.
    varying = (dims,) if isinstance(module, gnnfx.OptimizedModule) else dims
    return torch.export.export(module, example, dynamic_shapes=varying, **kwargs)


@pytest.mark.parametrize(("name", "policy"), [("gcn", "fp32"), ("gat-one-head", "int8")])
def test_round_trip(name: str, policy: str, tmp_path: Path) -> None:
    module = gnnfx.optimize(make(name), policy, graph(40, 160))
    torch.export.save(exported(module, graph(40, 160)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    again = gnnfx.optimize(loaded, "fp32", graph(40, 160))
    for inputs in GRAPHS:
        want = module(*inputs)
        assert torch.equal(loaded(*inputs), want)
        assert torch.equal(again(*inputs), want)
    assert again.ir().count("\n") == module.ir().count("\n")


SCRIPT = """
import sys, torch, gnnfx
inputs, want = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(*inputs), want)
"""


def test_it_runs_in_a_process_that_imports_gnnfx(tmp_path: Path) -> None:
    module = gnnfx.optimize(make("custom-sum"), "int8", graph(40, 160))
    torch.export.save(exported(module, graph(40, 160)), tmp_path / "model.pt2")
    torch.save((graph(50, 300), module(*graph(50, 300))), tmp_path / "data.pt")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, "model.pt2", "data.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_strict_export_too() -> None:
    module = gnnfx.optimize(make("hand-written"), "fp32", graph(40, 160))
    program = exported(module, graph(40, 160), strict=True)
    assert "structure" not in str(program.graph), "a handle of this process means nothing elsewhere"
    assert torch.equal(program.module()(*graph(30, 100)), module(*graph(30, 100)))


def test_a_number_of_graphs_that_only_the_data_tells() -> None:
    def batch(nodes: int, graphs: int) -> tuple[Tensor, Tensor, Tensor]:
        return *graph(nodes, 90), torch.arange(nodes) % graphs

    module = gnnfx.optimize(GraphClassifier().eval(), "fp32", batch(30, 4))
    loaded = exported(module, batch(30, 4)).module()
    for inputs in [batch(50, 7), batch(20, 1)]:
        assert torch.equal(loaded(*inputs), module(*inputs))


def test_an_index_out_of_range_is_refused() -> None:
    module = gnnfx.optimize(make("custom-gated"), "fp32", graph(40, 160))
    loaded = exported(module, graph(40, 160)).module()
    x, edge_index = graph(30, 100)
    for wrong in (edge_index + 1, edge_index - 1):
        with pytest.raises(RuntimeError, match="'edge_index' holds a node that names no row"):
            loaded(x, wrong)


def test_what_torch_exported_can_be_optimized() -> None:
    model = make("custom-gated")
    loaded = exported(model, graph(40, 160)).module()
    module = gnnfx.optimize(loaded, "int8", graph(40, 160))
    assert torch.equal(
        module(*graph(30, 100)), gnnfx.optimize(model, "int8", graph(40, 160))(*graph(30, 100))
    )
