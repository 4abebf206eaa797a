"""One graph that Dynamo captured, optimized for the weights that it is called with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx.agreement import disagreement
from gnnfx.backend.call import Call
from gnnfx.backend.module import OptimizedModule
from gnnfx.errors import MismatchError, VerifyError
from gnnfx.frontend.functional_graph import program_of
from gnnfx.frontend.signature import Signature
from gnnfx.graph_cache import GraphCache
from gnnfx.ir.infer import records
from gnnfx.ir.program import Instr, Program
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.pipeline import FLOAT_FACTS, float_passes, lower_passes, observe_passes, quantize_passes
from gnnfx.policy import Policy
from gnnfx.report import Report

logger = logging.getLogger("gnnfx.dynamo")


@dataclass(frozen=True, slots=True)
class Given:
    """One input of a graph: its name, its value in the first call, and whether it is a weight."""

    name: str
    value: Any
    weight: bool


@dataclass(frozen=True, slots=True)
class _Optimized:
    """A graph optimized for certain weights.

    run: computes the results from the inputs of the graph.
    folded: whether it holds values computed from the weights.
    """

    run: Callable[[list[Any]], list[Any]]
    folded: bool


class CompiledGraph:
    """Runs a functional graph on its inputs.

    Weights that the program reads as they are come with each call.  Values folded from weights are
    good for those weights alone, which are recognized by their contents, as graphs are; for others
    the graph is optimized anew.
    """

    _boxed_call = True  # arguments come as a list, to be emptied

    def __init__(self, graph: fx.GraphModule, given: Sequence[Given], policy: Policy) -> None:
        self._graph = graph
        self._names = [g.name for g in given]
        self._weights = [n for n, g in enumerate(given) if g.weight]
        self._first: list[Any] | None = [g.value for g in given]
        self._policy = policy
        self._for_all: _Optimized | None = None
        self._by_weights = GraphCache(self._optimize, capacity=2)

    def prepare(self) -> None:
        """Optimize for the first call, while its guards can still be added to."""
        assert self._first is not None
        self._lookup(self._first)
        self._first = None

    def __call__(self, args: list[Any]) -> list[Any]:
        values = list(args)
        args.clear()
        optimized = self._lookup(values)
        for n in self._weights:
            values[n] = values[n].detach()
        return optimized.run(values)

    def _lookup(self, values: list[Any]) -> _Optimized:
        if self._for_all is not None:
            return self._for_all
        found = self._by_weights.lookup([values[n] for n in self._weights], [])
        if not found.folded:
            self._for_all = found
            self._by_weights.forget()
        return found

    def _optimize(self, weights: Sequence[Tensor], sizes: Sequence[int]) -> _Optimized:
        """The graph for `weights`, private copies; as it is where it cannot be optimized."""
        by_number = dict(zip(self._weights, weights, strict=True))
        try:
            while True:
                known = self._sizes_known()
                try:
                    return self._rewrite(by_number)
                except VerifyError:
                    # Passes may find that two sizes must be equal, which becomes a guard of the
                    # graph.  Types then change under their hands: begin with what is known now.
                    if self._sizes_known() == known:
                        raise
        except Exception as error:
            logger.warning("a graph runs as it is: %s: %s", type(error).__name__, error)
            return _Optimized(lambda values: list(self._graph(*values)), folded=False)

    def _sizes_known(self) -> int:
        """How many sizes are known to equal others."""
        mode = detect_fake_mode([n.meta.get("val") for n in self._graph.graph.nodes])
        env = None if mode is None else mode.shape_env
        return 0 if env is None else len(env.replacements)

    def _rewrite(self, weights: dict[int, Tensor]) -> _Optimized:
        before = program_of(self._graph, self._names, weights)
        ctx = PassContext(self._policy)
        program = self._passes(before, ctx)
        given = {id(t) for t in before.tensors.values()}
        folded = any(id(t) not in given for t in program.tensors.values())
        number_of = {id(t): n for n, t in weights.items()}
        program, live = _read_each_call(program, number_of)
        order = [*(n for n in range(len(self._names)) if n not in weights), *live]
        names = tuple(self._names[n] for n in order)
        call = Call(Signature((), 0, {}, False), (), names, {}, pytree.tree_structure(0))
        report = Report.of("compiled", before.tensors, program, ctx.remarks)
        module = OptimizedModule(call, program, report)
        logger.info("optimized a graph:\n%s", module.ir())
        logger.debug("%s", report)
        return _Optimized(lambda values: list(module.run([values[n] for n in order])), folded)

    def _passes(self, program: Program, ctx: PassContext) -> Program:
        """As gnnfx.optimize; a graph in which nothing can be quantized stays float."""
        program = PassManager(float_passes(ctx.policy)).run(program, ctx)
        if ctx.policy.quantize is not None:
            observed = PassManager(observe_passes(), FLOAT_FACTS).run(program, ctx)
            if any(observed.find("observe")):
                self._verify(program)
                facts = FLOAT_FACTS | {"observed"}
                program = PassManager(quantize_passes(), facts).run(observed, ctx)
                return PassManager(lower_passes(), FLOAT_FACTS).run(program, ctx)
        program = PassManager(lower_passes(), FLOAT_FACTS).run(program, ctx)
        self._verify(program)
        return program

    def _verify(self, program: Program) -> None:
        """Compare a float program with the graph on the inputs of the first call, if they are real.

        Raises MismatchError.
        """
        values = self._first
        if values is None or any(isinstance(v, FakeTensor) for v in values):
            return
        if any(Instr(n).random for n in self._graph.graph.nodes):
            return
        inputs = [v for n, v in enumerate(values) if n not in self._weights]
        # What autocast decided is part of the graph.
        with torch.no_grad(), torch._C._DisableAutocast():
            try:
                wanted = self._graph(*values)
            except Exception:
                return  # the call itself will say what is wrong with its inputs
            found = program.run(*inputs)
        for number, (want, have) in enumerate(zip(wanted, found, strict=True)):
            if isinstance(want, Tensor) and (gap := disagreement(want, have)) is not None:
                raise MismatchError(f"result {number} of the optimized graph {gap}")


def _read_each_call(program: Program, number_of: dict[int, int]) -> tuple[Program, list[int]]:
    """`program` with further inputs for tensors whose ids are given, and their numbers in order."""
    graph, copies, live = fx.Graph(), dict[fx.Node, fx.Node](), list[int]()
    for instr in program.inputs:
        copies[instr.node] = graph.node_copy(instr.node)
    for instr in program.find("param"):
        if (number := number_of.get(id(program.tensor(instr)))) is not None:
            copies[instr.node] = graph.placeholder(instr.name)
            live.append(number)
    for instr in program.instrs:
        if instr.node not in copies:
            copies[instr.node] = graph.node_copy(instr.node, copies.__getitem__)
            copies[instr.node].name = instr.name
        copies[instr.node].meta = dict(instr.node.meta)
    used = {n.target for n in graph.nodes if n.op == "get_attr"}
    tensors = {name: t for name, t in program.tensors.items() if name in used}
    made = Program(graph, tensors, program.mode, program.axes, program.name, program.kept)
    records(made)
    return made, live
