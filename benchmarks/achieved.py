"""How close each op of an optimized program comes to what the machine can do.

The program is run one instruction after the other, in several rounds, and each instruction's
median time is set against the least time that its declared cost takes at the machine's rates: rows
in the order of an index at the rate of gathering, all other bytes at that of copying, or its
matrix product at the rate of such products, whichever is longer.  ATen ops declare no cost; they
are taken to read their arguments and to write their result once.
"""

from __future__ import annotations

import inspect
import operator
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from limits import Limits
from rounds import clock
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from gnnfx.backend.module import KeptModel, OptimizedModule
from gnnfx.ir.op import Cost, OpDef, find_op
from gnnfx.kernels.memory import Workspace

_ROUNDS = 7
_PRODUCTS = ("aten.mm.default", "aten.addmm.default")
_TOLD = 0.01  # share of the program's time from which on an op is told


@dataclass(frozen=True, slots=True)
class OpTime:
    """One instruction: seconds of a call and the least that it could take.

    part: `graph` for what runs once a graph, `call` for the rest.
    bound: what the least is made of: gather, copy or gemm.
    """

    part: str
    name: str
    op: str
    impl: str
    seconds: float
    least: float
    bound: str
    bytes: int
    flops: int


def op_times(
    module: OptimizedModule, arguments: tuple[Tensor, ...], limits: Limits
) -> list[OpTime]:
    """The ops that take a hundredth of their part's time or more; none of a model kept as it is."""
    if isinstance(module, KeptModel):
        return []
    found: list[OpTime] = []
    for part, (graph, values) in zip(("graph", "call"), module.parts(*arguments), strict=True):
        times = [t for t in _times(part, graph, values, limits) if t.bytes or t.flops]
        total = sum(t.seconds for t in times)
        found.extend(t for t in times if t.seconds >= _TOLD * total)
    return found


def _times(part: str, module: fx.GraphModule, values: list[Any], limits: Limits) -> list[OpTime]:
    seconds: dict[fx.Node, list[float]] = {}
    workspace = Workspace()  # as a call of the module has one
    for turn in range(_ROUNDS + 1):
        with workspace.lend():
            _sweep(module, values, limits.device, seconds)
        if turn == 0:
            seconds.clear()
    known = _sweep(module, values, limits.device, {}, keep=True)
    found = []
    for node, sample in seconds.items():
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        op = find_op(node.target)
        cost = _cost(node, op, args, kwargs, known[node])
        impl = op.select(*args, **kwargs).name if op is not None else "aten"
        name = op.name if op is not None else str(node.target)
        least, bound = _least(cost, [*args, *kwargs.values()], limits)
        multiplying = _multiplying(name, op, args, kwargs, known[node], cost, limits)
        if multiplying > least:
            least, bound = multiplying, "gemm"
        middle = statistics.median(sample)
        found.append(
            OpTime(part, node.name, name, impl, middle, least, bound, cost.bytes, cost.flops)
        )
    return found


def _sweep(
    module: fx.GraphModule,
    inputs: list[Any],
    device: str,
    seconds: dict[fx.Node, list[float]],
    *,
    keep: bool = False,
) -> dict[fx.Node, Any]:
    """Run the program once; values are dropped after their last use unless they are kept."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    last = {used: node for node in module.graph.nodes for used in node.all_input_nodes}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(module)
        elif node.op == "output":
            break
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            call = _Call(node, args, kwargs)
            seconds.setdefault(node, []).append(clock(call.run, device))
            values[node] = call.result
        if not keep:
            for used in node.all_input_nodes:
                if last[used] is node:
                    del values[used]
    return values


class _Call:
    """One instruction with its arguments; `run` leaves the result in `result`."""

    def __init__(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        op = find_op(node.target)
        target: Any = node.target if node.op == "call_function" else None
        if node.op == "call_module":
            owner: Any = node.graph.owning_module
            target = owner.get_submodule(str(node.target))
        self._run: Callable[..., Any] = op.run if op is not None else target
        self._args, self._kwargs = args, kwargs
        self.result: Any = None

    def run(self) -> None:
        self.result = self._run(*self._args, **self._kwargs)


def _cost(node: fx.Node, op: OpDef | None, args: Any, kwargs: Any, result: Any) -> Cost:
    if op is not None:
        return op.cost(*args, **kwargs)
    read = {id(t): t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    made = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
    if not made or any(_is_view(t, list(read.values())) for t in made):
        return Cost(0, 0)
    flops = 0
    packet = getattr(node.target, "overloadpacket", None)
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=result)
    return Cost(flops, sum(t.nbytes for t in [*read.values(), *made]))


def _is_view(tensor: Tensor, others: list[Tensor]) -> bool:
    start = tensor.untyped_storage().data_ptr()
    return any(other.untyped_storage().data_ptr() == start for other in others)


def _least(cost: Cost, operands: list[Any], limits: Limits) -> tuple[float, str]:
    """The least seconds that moving the bytes of a call takes, and which of them bind it."""
    gathering = 0.0
    x = next((a for a in pytree.tree_leaves(operands) if isinstance(a, Tensor)), None)
    if cost.gathered and x is not None and x.shape[0]:
        gathering = cost.gathered / limits.gather(x[:1].nbytes)
    streamed = cost.bytes - cost.gathered
    moving = streamed / limits.copy(streamed) + gathering
    return moving, "gather" if 2 * gathering > moving else "copy"


def _multiplying(
    name: str, op: OpDef | None, args: Any, kwargs: Any, result: Any, cost: Cost, limits: Limits
) -> float:
    """The least seconds that the matrix product in a call takes; 0 where there is none.

    The product of an edge MLP has a row for each edge, that of a sum all inputs of its terms, and
    that of features of edges, which is never written, the rate of one that stays in the cache.
    """
    given = {} if op is None else inspect.signature(op.reference).bind(*args, **kwargs).arguments
    if given.get("edge_weight") is not None:
        outputs, inputs = given["edge_weight"].shape
        operations: int = 2 * given["src"].shape[0] * inputs * outputs
        return operations / limits.fused_gemm(inputs, outputs)
    if not cost.flops or not ("linear" in name or "mlp" in name or name in _PRODUCTS):
        return 0.0
    if op is None:
        weight = next(t for t in reversed(args) if isinstance(t, Tensor) and t.dim() == 2)
        inputs, outputs = weight.shape
    elif given.get("weight") is None:  # a sparse product, which no rate of dense ones limits
        return 0.0
    else:
        weight = given["weight"]
        weight = weight[0] if isinstance(weight, (list, tuple)) else weight
        outputs, inputs = weight.shape[0], weight.shape[1]
        if "mlp" not in name:
            inputs = max(cost.flops // (2 * result.shape[0] * outputs), 1)
    rows = max(cost.flops // (2 * inputs * outputs), 1)
    dtype = torch.float32 if weight.is_floating_point() else torch.int8
    rate = limits.gemm(rows, inputs, outputs, dtype)  # 0 where nothing multiplies so
    return cost.flops / rate if rate else 0.0
