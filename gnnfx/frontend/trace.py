"""From a module to a program of ATen ops, with every row count free.

`torch.export` captures the model in eval mode, on FakeTensors of the example's form; its
functional graph becomes the program, parameters under their own names.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from gnnfx.errors import InputError, TraceError
from gnnfx.frontend.data_dependent import Assumptions, decided_by, numbers_of
from gnnfx.frontend.empty_index import extend_indices
from gnnfx.frontend.example import CHECK_SIZES, TRACE_SIZES, is_edge_index, make_example, resize
from gnnfx.frontend.functionalize import functionalize
from gnnfx.frontend.keep import Call, at_fault, place_sites, submodule_calls
from gnnfx.frontend.signature import (
    Signature,
    as_call,
    flatten,
    form_of,
    input_name,
    key_of,
    unflatten,
)
from gnnfx.frontend.sparse import SparseAsEdges, stand_in
from gnnfx.frontend.substitutes import FillByCopy, substituted
from gnnfx.frontend.symbolic_builtins import symbolic_builtins
from gnnfx.ir.assume import assume
from gnnfx.ir.infer import annotate, take_as_inferred
from gnnfx.ir.program import Instr, Program, set_record
from gnnfx.ir.rewriter import drop_dead
from gnnfx.ir.types import Domain, Record, wrong_size

_RUNTIME_CHECKS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
)


@dataclass(frozen=True)
class Traced:
    """A model as a program.

    example: inputs by argument name that the program was traced for (their form matters).
    leaves: names of the program's inputs, in order, as leaves of the arguments.
    constants: leaves that are no inputs of the program, with the value they must have.
    checks: inputs of several sizes on which the program is compared with the model.
    kept: paths of submodules that run as they are, and why.
    """

    program: Program
    signature: Signature
    example: dict[str, Any]
    leaves: tuple[str, ...]
    constants: dict[str, Any]
    out_spec: pytree.TreeSpec
    checks: tuple[dict[str, Any], ...] = ()
    kept: tuple[tuple[str, str], ...] = ()

    @cached_property
    def densities(self) -> dict[str, float]:
        """Share of non-zeros in the first rows of each feature matrix of the example, by input."""
        return {
            input_name(name): float((leaf[:_ROWS_LOOKED_AT] != 0).float().mean())
            for name, leaf in flatten(self.example).items()
            if isinstance(leaf, Tensor)
            and leaf.dim() == 2
            and leaf.is_floating_point()
            and len(leaf)
        }


@dataclass(frozen=True)
class _Attempt:
    """One way to choose the inputs that a model is captured with."""

    resize: bool
    apart: bool
    ints_vary: bool


_ROWS_LOOKED_AT = 1000
# Above this many numbers in the example, smaller graphs must do.
_MOST_NUMBERS_CHECKED = 200_000

# The first that works gives the most general program; the last takes the example as it is.
_ATTEMPTS = (
    _Attempt(resize=True, apart=True, ints_vary=True),
    _Attempt(resize=True, apart=False, ints_vary=True),
    _Attempt(resize=True, apart=False, ints_vary=False),
    _Attempt(resize=False, apart=False, ints_vary=False),
)


def trace(
    model: nn.Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> Traced:
    """Capture `model` in eval mode; with no example inputs they are made from its signature.

    Raises InputError if inputs are needed and cannot be made or the model does not run on them,
    TraceError if `torch.export` cannot capture the model or the model writes to its inputs.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    signature = Signature.of(model)
    if args is None and kwargs is None:
        inputs = make_example(model)
    else:
        inputs = signature.bind(args or (), kwargs or {})
    name, frozen, before = type(model).__name__, frozen_copy(model), _versions(inputs)
    if error := run_error(frozen, inputs):
        raise InputError(f"{name} does not run on the example inputs: {error}")
    if written := [leaf for leaf, version in _versions(inputs).items() if version != before[leaf]]:
        raise TraceError(f"{name} writes to its argument {written[0]!r}")
    try:
        return _captured(frozen, name, signature, inputs)
    except TraceError:
        if paths := _faults(frozen, inputs):
            return _captured(frozen, name, signature, inputs, paths)
        raise


def _versions(inputs: dict[str, Any]) -> dict[str, int]:
    """How often each tensor of the inputs was written to; those of inference mode do not count."""
    tensors = {leaf: v for leaf, v in flatten(inputs).items() if isinstance(v, Tensor)}
    return {leaf: t._version for leaf, t in tensors.items() if not t.is_inference()}


def _faults(model: nn.Module, inputs: dict[str, Any]) -> dict[str, str]:
    """The submodules that have to be kept for the rest to be captured, and why."""

    def capture(module: nn.Module, call: Call) -> None:
        signature = Signature.of(module)
        _captured(module, type(module).__name__, signature, signature.bind(*call))

    return at_fault(model, submodule_calls(model, lambda: _call(model, inputs)), capture)


def _captured(
    model: nn.Module,
    name: str,
    signature: Signature,
    inputs: dict[str, Any],
    kept: dict[str, str] | None = None,
) -> Traced:
    """The most general program that can be had; raises TraceError with the first reason."""
    reasons: list[str] = []
    for attempt in _ATTEMPTS:
        try:
            return _capture(model, name, signature, inputs, attempt, kept or {})
        except TraceError as error:
            reasons.append(str(error))
    raise TraceError(reasons[0])


def _call(model: nn.Module, inputs: dict[str, Any]) -> Any:
    args, kwargs = as_call(inputs)
    return model(*args, **kwargs)


def run_error(model: nn.Module, inputs: dict[str, Any]) -> str:
    """Why `model` does not run on `inputs`, in one line; '' if it does."""
    try:
        with torch.no_grad():
            _call(model, inputs)
    except Exception as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _capture(
    model: nn.Module,
    name: str,
    signature: Signature,
    inputs: dict[str, Any],
    attempt: _Attempt,
    kept: dict[str, str],
) -> Traced:
    example = inputs
    if attempt.resize:
        example = resize(inputs, TRACE_SIZES, apart=attempt.apart)
        if error := run_error(model, example):
            raise TraceError(f"{name} does not run on graphs of other sizes: {error}")
    leaves = flatten(example)
    dims = {
        leaf: _dynamic(value, attempt.ints_vary)
        for leaf, value in leaves.items()
        if isinstance(value, Tensor) or (attempt.ints_vary and type(value) is int)
    }
    body, records = model, []
    if kept:
        body = frozen_copy(model)
        graphs = [example]
        if attempt.resize:
            graphs.append(resize(inputs, CHECK_SIZES, apart=attempt.apart))
        runs = [submodule_calls(model, partial(_call, model, graph)) for graph in graphs]
        records = place_sites(body, list(kept), runs)
    adapter = _Adapter(body, example, tuple(dims))
    # The parts of a sparse matrix are views of it, which export would try to follow.
    values = [v.clone() if isinstance(v, Tensor) else v for v in map(leaves.get, dims)]
    exported, assumptions = _export(adapter, name, values, dims)
    for buffer in exported.graph_signature.buffers_to_mutate.values():
        raise TraceError(f"{name} writes to its buffer {buffer.removeprefix(_PREFIX)!r}")
    traced = _traced(exported, name, signature, inputs, leaves, tuple(dims), assumptions)
    _verify_form(traced, name, inputs)
    for record in records:
        traced.program.kept.update(record.kept)
    checks = _checks(model, traced, inputs, example, attempt)
    return replace(traced, checks=checks, kept=tuple(kept.items()))


def _checks(
    model: nn.Module,
    traced: Traced,
    inputs: dict[str, Any],
    example: dict[str, Any],
    attempt: _Attempt,
) -> tuple[dict[str, Any], ...]:
    """The graph of the trace, a smaller one, and the user's own unless comparing it takes long."""
    found = [example]
    if attempt.resize:
        found.append(resize(inputs, CHECK_SIZES, apart=attempt.apart))
        numbers = sum(v.numel() for v in flatten(inputs).values() if isinstance(v, Tensor))
        if numbers <= _MOST_NUMBERS_CHECKED:
            found.append(inputs)
    return tuple(i for i in found if i is inputs or _takes(model, traced, i))


def _takes(model: nn.Module, traced: Traced, inputs: dict[str, Any]) -> bool:
    try:
        _verify_form(traced, "", inputs)
    except TraceError:
        return False
    return not run_error(model, inputs)


def _dynamic(value: Any, ints_vary: bool) -> Any:
    """The dimensions of an input that vary: the length of an edge index, the rows of the rest."""
    if not isinstance(value, Tensor):
        return Dim.AUTO
    return {1: Dim.AUTO} if is_edge_index(value) else {0: Dim.AUTO} if value.dim() else {}


class _Adapter(nn.Module):
    """Calls a model with its inputs put together from a list of tensors and integers."""

    def __init__(self, model: nn.Module, like: dict[str, Any], names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.form = form_of(like)
        self.leaves = dict.fromkeys(flatten(like)) | {
            leaf: value for leaf, value in flatten(like).items() if leaf not in names
        }
        self.names = names

    def forward(self, values: list[Any]) -> Any:
        leaves = self.leaves | dict(zip(self.names, values, strict=True))
        with SparseAsEdges(), FillByCopy():
            return _call(self.model, unflatten(self.form, leaves, stand_in))


_PREFIX = "model."


def _verify_form(traced: Traced, name: str, inputs: dict[str, Any]) -> None:
    """The program must take the very example: sizes it was captured with may have become fixed."""
    leaves = flatten(inputs)
    for leaf, value in traced.constants.items():
        if not isinstance(leaves[leaf], Tensor) and leaves[leaf] != value:
            raise TraceError(f"{name} computes with the value of argument {leaf!r}")
    expected = [i.type for i in traced.program.inputs]
    wrong = wrong_size(expected, [leaves[leaf] for leaf in traced.leaves])
    if wrong is not None:
        position, size, given = wrong
        leaf = traced.leaves[position]
        raise TraceError(f"{name} fixes a size of argument {leaf!r} to {size}, got {given}")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that keeps nothing of a call and leaves its inputs as they are.

    Layers that cache their first graph are told not to, and forget it; reversible ones, which free
    their input because they can compute it again for gradients, are told not to.

    Raises InputError for a model with lazy parameters: those that the copy would draw are not those
    that the model's own first call will.
    """
    lazy = [name for name, value in named_tensors(model).items() if is_lazy(value)]
    if lazy:
        raise InputError(
            f"model has tensors whose sizes its first call decides: {', '.join(lazy[:3])}"
            f"{' and more' if len(lazy) > 3 else ''}; expected a model that has been called once"
        )
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    frozen = copy.deepcopy(model, memo).eval().requires_grad_(False)
    for module in frozen.modules():
        if getattr(module, "cached", False) is True:
            setattr(module, "cached", False)  # noqa: B010  (nn.Module types attributes as tensors)
            vars(module).update({n: None for n in vars(module) if n.startswith("_cached_")})
        if hasattr(module, "_inverse") and getattr(module, "disable", None) is False:
            setattr(module, "disable", True)  # noqa: B010
    return frozen


def _export(
    adapter: _Adapter, name: str, values: list[Any], dims: dict[str, Any]
) -> tuple[ExportedProgram, Assumptions]:
    shapes = (list(dims.values()),)
    model = adapter.model
    with _quiet(), _lean(), torch.no_grad(), symbolic_builtins(model), substituted(model):
        try:
            numbers = numbers_of(lambda: adapter(values))
            with decided_by(numbers) as assumptions:
                exported = torch.export.export(
                    adapter, (values,), dynamic_shapes=shapes, strict=False
                )
                functional = functionalize(exported)
                extend_indices(functional.graph)
                return functional, assumptions
        except Exception as error:
            raise TraceError(
                f"torch.export could not capture {name}: {_first_line(error)}"
            ) from error


@contextmanager
def _lean() -> Iterator[None]:
    """Without the line of code of each node, which nobody reads, and without FakeTensor's cache.

    Looking results up there, by shapes that are expressions, takes longer than making them.
    """
    before = getattr(fx.config, "do_not_emit_stack_traces", False)
    fx.config.do_not_emit_stack_traces = True
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        fx.config.do_not_emit_stack_traces = before


_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch._export.non_strict_utils")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns about its own internals; none of that is the user's to act on."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _traced(
    exported: ExportedProgram,
    name: str,
    signature: Signature,
    inputs: dict[str, Any],
    leaves: dict[str, Any],
    passed: tuple[str, ...],
    assumptions: Assumptions,
) -> Traced:
    tensors: dict[str, Tensor] = {**exported.state_dict, **exported.constants}
    specs = {s.arg.name: s for s in exported.graph_signature.input_specs}
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    order = iter(passed)
    used: list[str] = []
    constants = {leaf: value for leaf, value in leaves.items() if leaf not in passed}
    mode = torch._guards.detect_fake_mode([n.meta.get("val") for n in exported.graph.nodes])
    assert mode is not None
    assert mode.shape_env is not None
    # These inputs hold the sizes that hold them, out of reach of garbage collection; done tracing,
    # nobody asks for them.
    mode.shape_env.tracked_fakes = None
    program = Program(graph, {}, mode, name=name)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and specs[node.name].kind is InputKind.USER_INPUT:
            leaf = next(order)
            if not isinstance(node.meta["val"], (Tensor, torch.SymInt)):
                constants[leaf] = leaves[leaf]
                continue
            used.append(leaf)
            copies[node] = graph.placeholder(input_name(leaf))
        elif node.op == "placeholder":
            target = str(specs[node.name].target)
            tensor = tensors[target].detach()
            target = target.removeprefix(_PREFIX)
            program.tensors[target] = tensor
            copies[node] = graph.get_attr(target)
        elif node.target in _RUNTIME_CHECKS:
            continue
        elif node.target is torch.ops.aten._assert_scalar.default:
            condition = node.args[0]
            if not isinstance(condition, fx.Node) or not assumptions.matter(_condition(condition)):
                continue
            text = str(_condition(condition))
            copies[node] = graph.call_function(assume, (copies[condition], text))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].name = node.name
        copies[node].meta = {"val": node.meta["val"]} if "val" in node.meta else {}
        if "val" in node.meta and node.op == "call_function":
            take_as_inferred(program, copies[node])
        record = Record(None, Domain.OTHER, _module_path(node))
        set_record(Instr(copies[node]), record)
    if assumptions.by_model and not any(n.target is assume for n in graph.nodes):
        raise TraceError(f"{name} branches on its data: {', '.join(assumptions.by_model)}")
    drop_dead(graph)
    kept = {n.target for n in graph.nodes if n.op == "get_attr"}
    program.tensors = {k: v for k, v in program.tensors.items() if k in kept}
    _name_axes(program, used)
    spec = exported.call_spec.out_spec
    assert spec is not None
    return Traced(annotate(program), signature, inputs, tuple(used), constants, spec)


def _module_path(node: fx.Node) -> str:
    """Dotted path of the innermost user module that made `node`."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    paths = [p.removeprefix("model").removeprefix(".") for p in stack if not p.startswith("_")]
    return paths[-1] if paths else ""


def _condition(node: fx.Node) -> Any:
    """The symbolic condition that a node of a captured graph stands for."""
    value = node.meta.get("val")
    return value.node.expr if isinstance(value, torch.SymBool) else sympy.true


def _name_axes(program: Program, leaves: list[str]) -> None:
    """Give the sizes of the inputs the names people use: N for rows, E for edges, N[paper]."""
    for instr, leaf in zip(program.inputs, leaves, strict=True):
        key = key_of(leaf)
        type_ = "__".join(re.sub(r"\W", "_", part) for part in key)
        value = instr.fake
        shape = value.shape if isinstance(value, Tensor) else [value]
        for size in shape:
            if isinstance(size, torch.SymInt):
                expr = size.node.expr
                on_edges = len(key) == 3 or (len(shape) == 2 and shape[0] == 2)
                letter, of_type = "E" if on_edges else "N", f"[{type_}]" if key else ""
                if expr.is_Symbol and expr not in program.axes:
                    taken = sum(
                        n.startswith(letter) and n.endswith(of_type) for n in program.axes.values()
                    )
                    program.axes[expr] = letter + (str(taken) if taken else "") + of_type
