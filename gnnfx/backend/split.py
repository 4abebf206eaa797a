"""Split a program into a structure part, run once per graph, and a feature part, run each call.

The structure part takes the inputs that describe the graph and the sizes it needs; the feature
part takes all inputs and what the structure part made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from gnnfx.ir.infer import axis_domains, records, structure_values
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import drop_dead


@dataclass(frozen=True)
class Split:
    """Both parts of a program.

    tensors: names of the inputs that the structure part reads.
    sizes: (input, dimension) of each integer that it reads after them; the dimension of an
        input that is an integer itself is None.
    """

    structure: Program
    feature: Program
    tensors: tuple[str, ...]
    sizes: tuple[tuple[str, int | None], ...]


def split(program: Program) -> Split:
    """Cut `program` where values that depend on the graph alone meet those that do not."""
    structural = structure_values(program, axis_domains(program))
    cheap = _cheap_sizes(program)
    values, counts = _frontier(program, structural, cheap)
    checks = [i for i in program.find("assume") if i.name in structural]
    inside = _needed([*values, *counts, *checks])
    given = [i for i in program.inputs if i.name in structural and i in inside]
    tensors = [i for i in given if isinstance(i.fake, Tensor)]
    measured = [
        i
        for i in program.find("aten.sym_size.int")
        if i in inside and i.arg.op == "input" and i.arg not in tensors
    ]
    sizes = [*measured, *(i for i in given if i not in tensors)]
    inside -= {i.arg for i in measured}
    structure = _structure_part(program, inside, tensors, sizes, [*values, *counts])
    feature = _feature_part(program, values, counts, structural)
    return Split(
        structure,
        feature,
        tuple(i.name for i in tensors),
        tuple((i.name, None) if i.op == "input" else (i.arg.name, i.args["dim"]) for i in sizes),
    )


def _cheap_sizes(program: Program) -> set[Instr]:
    """Integers that follow from the shapes of inputs; each part computes them for itself."""
    cheap: set[Instr] = set()
    for instr in program.instrs:
        if isinstance(instr.fake, Tensor) or instr.op in ("return", "param", "input"):
            continue
        if all(i.op == "input" or i in cheap for i in instr.inputs):
            cheap.add(instr)
    return cheap


def _frontier(
    program: Program, structural: set[str], cheap: set[Instr]
) -> tuple[list[Instr], list[Instr]]:
    """Structural tensors, and integers that only the graph's contents tell, read by features."""
    values: list[Instr] = []
    counts: list[Instr] = []
    for instr in program.instrs:
        if instr.name not in structural or instr.op in ("input", "return") or instr in cheap:
            continue
        if all(u.name in structural for u in instr.users):
            continue
        (values if isinstance(instr.fake, Tensor) else counts).append(instr)
    return values, counts


def _needed(roots: list[Instr]) -> set[Instr]:
    """Everything that `roots` are computed from."""
    needed: set[Instr] = set()
    while roots:
        instr = roots.pop()
        if instr not in needed:
            needed.add(instr)
            roots.extend(instr.inputs)
    return needed


def _structure_part(
    program: Program,
    inside: set[Instr],
    tensors: list[Instr],
    sizes: list[Instr],
    results: list[Instr],
) -> Program:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for instr in [*tensors, *sizes]:
        copies[instr.node] = graph.placeholder(instr.name)
        copies[instr.node].meta = dict(instr.node.meta)
    part = _part(program, graph, f"{program.name}_structure")
    for instr in program.instrs:
        if instr in inside and instr.node not in copies and instr.op != "input":
            _copy(graph, instr, copies)
    for instr in results:
        if not isinstance(instr.fake, Tensor):
            copies[instr.node] = _as_shape(part, copies[instr.node])
    graph.output([copies[i.node] for i in results])
    return _finished(part)


def _as_shape(part: Program, count: fx.Node) -> fx.Node:
    """An integer as the length of an empty-handed tensor: it needs no memory and no sync."""
    call = part.graph.call_function
    zero = call(torch.ops.aten.zeros.default, ([0],))
    carrier = call(torch.ops.aten.new_empty.default, (zero, [count, 0]))
    with part.mode:
        zero.meta["val"] = torch.zeros([0])
        carrier.meta["val"] = zero.meta["val"].new_empty([count.meta["val"], 0])
    return carrier


def _feature_part(
    program: Program, values: list[Instr], counts: list[Instr], structural: set[str]
) -> Program:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    part = _part(program, graph, program.name)
    for instr in [*program.inputs, *values]:
        copies[instr.node] = graph.placeholder(instr.name)
        copies[instr.node].meta = dict(instr.node.meta)
    carriers = {i: graph.placeholder(i.name) for i in counts}
    for instr, carrier in carriers.items():
        with program.mode:
            carrier.meta["val"] = torch.empty([instr.fake, 0])
        size = graph.call_function(torch.ops.aten.sym_size.int, (carrier, 0))
        size.meta["val"] = instr.fake
        copies[instr.node] = size
    for instr in program.instrs:
        if instr.node not in copies and not (instr.op == "assume" and instr.name in structural):
            _copy(graph, instr, copies)
    return _finished(part)


def _part(program: Program, graph: fx.Graph, name: str) -> Program:
    return Program(graph, program.tensors, program.mode, program.axes, name, program.kept)


def _copy(graph: fx.Graph, instr: Instr, copies: dict[fx.Node, fx.Node]) -> None:
    mapped: Callable[[fx.Node], fx.Node] = copies.__getitem__
    copies[instr.node] = graph.node_copy(instr.node, mapped)
    copies[instr.node].name = instr.name


def _finished(part: Program) -> Program:
    drop_dead(part.graph)
    records(part)
    return part
