"""Take the edges of all types apart in one sweep.

    a: bool[E] = aten.eq.Scalar(edge_type, 0)
    b: i64[2, D0] = aten.index.Tensor(edge_index, [None, a])
    c: bool[E] = aten.eq.Scalar(edge_type, 1)
    d: i64[2, D1] = aten.index.Tensor(edge_index, [None, c])
  becomes
    s: (i64[2, D0], i64[2, D1]) = split_edges(edge_index, edge_type, [0, 1])
    b: i64[2, D0] = getitem(s, 0)
    d: i64[2, D1] = getitem(s, 1)

so that no mask is made and no edge list searched for each type.
"""

from __future__ import annotations

import torch

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class SplitEdgeTypes(Pass):
    """Replace a mask for each edge type, as relational layers make them, by one split."""

    name = "split-edge-types"

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        found: dict[tuple[Instr, Instr], dict[int, Instr]] = {}
        for index in rewriter.program.find("aten.index.Tensor"):
            if (match := _match(index)) is not None:
                edges, edge_type, wanted = match
                found.setdefault((edges, edge_type), {}).setdefault(wanted, index)
        for (edges, edge_type), by_type in found.items():
            if len(by_type) == 1:
                continue
            lists = list(by_type.values())
            split = rewriter.insert(lists[0], "split_edges", edges, edge_type, list(by_type))
            rewriter.take_sizes(split, lists)
            for place, edge_list in enumerate(lists):
                part = rewriter.insert(lists[0], "getitem", split, place)
                rewriter.replace(edge_list, part)
        return rewriter.finish()


def _match(index: Instr) -> tuple[Instr, Instr, int] | None:
    """Edge list, types and the type whose edges `index` selects."""
    edges = index.arg
    match index.args["indices"]:
        case [None, Instr(op="aten.eq.Scalar") as mask]:
            edge_type, wanted = mask.args["self"], mask.args["other"]
        case _:
            return None
    lists = isinstance(edges, Instr) and len(edges.shape) == 2 and edges.shape[0] == 2
    whole = type(wanted) is int and edges.dtype == edge_type.dtype == torch.int64
    return (edges, edge_type, wanted) if lists and whole and len(edge_type.shape) == 1 else None
