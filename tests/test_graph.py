"""Programs as networkx graphs: what nodes and edges say, and the declared costs."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

import gnnfx.kernels  # noqa: F401  (registers the ops)
from gnnfx.history import record
from gnnfx.ir.graph import SizedCost, to_networkx
from gnnfx.ir.text import parse
from tests.models import graph, make

TEXT = """\
program sums(x: f32[N, 8], edge_index: i64[2, E])
  w: f32[4, 8] = param('lin.weight')
  src: i64[E] = aten.select.int(edge_index, 0, 0)
  dst: i64[E] = aten.select.int(edge_index, 0, 1)
  h: f32[N, 4] = linear(x, w)  # lin
  m: f32[E, 4] = gather(h, src)
  square: f32[E, 4] = aten.mul.Tensor(m, m)
  return square
"""


def test_nodes_and_edges_say_what_instructions_say() -> None:
    program = parse(TEXT)
    drawn = to_networkx(program)
    assert list(drawn) == [i.name for i in program.instrs]
    assert drawn.nodes["h"] == {
        "op": "linear",
        "type": "f32[N, 4]",
        "domain": "node",
        "module": "lin",
        "origin": "parse",
        "cost": SizedCost("64*N", "48*N + 128"),
    }
    assert drawn.nodes["w"]["domain"] == "parameter"
    assert drawn.nodes["src"]["cost"] is None, "ATen ops declare no cost"
    assert drawn.edges["x", "h"] == {"args": ("x",)}
    assert drawn.edges["m", "square"] == {"args": ("self", "other")}
    assert drawn.edges["square", "output"] == {"args": ("result",)}
    assert nx.ancestors(drawn, "m") == {"x", "w", "h", "src", "edge_index"}


def test_a_cost_without_symbols_is_a_number() -> None:
    drawn = to_networkx(parse(TEXT.replace("N", "3")))
    assert drawn.nodes["h"]["cost"] == SizedCost(192, 272)


@pytest.mark.parametrize("policy", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_every_step_of_a_model_can_be_drawn(name: str, policy: str) -> None:
    torch.manual_seed(0)
    for step in record(make(name), policy, graph(30, 90)).steps:
        drawn = step.program.to_networkx()
        assert nx.is_directed_acyclic_graph(drawn)
        assert len(drawn) == len(step.program.instrs)
        declared = [i for i in step.program.instrs if i.definition is not None]
        assert all(drawn.nodes[i.name]["cost"] is not None for i in declared)
