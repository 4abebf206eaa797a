"""From a functional graph of ATen ops, as AOT Autograd makes it, to a program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import SymBool, Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx.experimental.symbolic_shapes import statically_known_true

from gnnfx.errors import TraceError
from gnnfx.ir.assume import assume
from gnnfx.ir.infer import annotate
from gnnfx.ir.program import Instr, Program, set_record
from gnnfx.ir.rewriter import drop_dead
from gnnfx.ir.types import Domain, Record


def program_of(
    module: fx.GraphModule, labels: Sequence[str], params: Mapping[int, Tensor]
) -> Program:
    """The program of `module`, whose inputs at the positions of `params` are its tensors.

    labels: a name for each input.

    Raises TraceError for a graph that holds more than tensors and ops.
    """
    mode = detect_fake_mode([n.meta.get("val") for n in module.graph.nodes])
    if mode is None:
        raise TraceError("the graph holds no tensor")
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    program = Program(graph, {}, mode)
    inputs = module.graph.find_nodes(op="placeholder")
    position = {node: number for number, node in enumerate(inputs)}
    for node in module.graph.nodes:
        if node.op == "placeholder" and position[node] in params:
            copies[node] = _tensor(program, labels[position[node]], params[position[node]])
        elif node.op == "placeholder":
            copies[node] = graph.placeholder(labels[position[node]])
        elif node.op == "get_attr":
            constant = getattr(module, str(node.target), None)
            if not isinstance(constant, Tensor):
                raise TraceError(f"the graph holds {node.target}, which is no tensor")
            copies[node] = _tensor(program, str(node.target), constant)
        elif node.target is torch.ops.aten._assert_scalar.default:
            condition = node.args[0]
            if not isinstance(condition, fx.Node) or _always(condition.meta.get("val")):
                continue
            copies[node] = graph.call_function(assume, (copies[condition], str(node.args[1])))
        elif node.op == "call_function" and not _is_function(node.target):
            raise TraceError(f"the graph calls {node.target}, which is no op")
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = {"val": node.meta.get("val")}
        set_record(Instr(copies[node]), Record(None, Domain.OTHER, _module_path(node)))
    drop_dead(graph)
    return annotate(program)


def _tensor(program: Program, label: str, tensor: Tensor) -> fx.Node:
    """A reference to a tensor that the program owns under a name like `label`."""
    name, count = label, 0
    while name in program.tensors:
        count += 1
        name = f"{label}_{count}"
    program.tensors[name] = tensor
    return program.graph.get_attr(name)


def _always(condition: object) -> bool:
    return isinstance(condition, SymBool) and statically_known_true(condition)


def _is_function(target: object) -> bool:
    """Whether a call computes by itself, unlike an op that is given a graph to run."""
    return isinstance(target, torch._ops.OpOverload) or (
        callable(target) and hasattr(target, "__qualname__")
    )


def _module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that made `node`, below the one that was compiled."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return re.sub(r"^[LG]\['\w+'\]\.?", "", stack[-1]) if stack else ""
