"""From a module to a program of ATen ops, with every row count free.

`torch.export` captures the model in eval mode, on FakeTensors of the example's form; its
functional graph becomes the program, parameters under their own names.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.utils import _pytree as pytree

from gnnfx.errors import InputError, TraceError
from gnnfx.frontend.example import TRACE_SIZES, make_example, resize, row_counts
from gnnfx.frontend.signature import Signature, as_call, flatten, unflatten
from gnnfx.frontend.symbolic_int import symbolic_int
from gnnfx.ir.infer import annotate
from gnnfx.ir.program import Instr, Program, set_record
from gnnfx.ir.rewriter import drop_dead
from gnnfx.ir.types import Domain, Record

_RUNTIME_CHECKS = (
    torch.ops.aten._assert_scalar.default,
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
    """

    program: Program
    signature: Signature
    example: dict[str, Any]
    leaves: tuple[str, ...]
    constants: dict[str, Any]
    out_spec: pytree.TreeSpec


def trace(
    model: nn.Module, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> Traced:
    """Capture `model` in eval mode; with no example inputs they are made from its signature.

    Raises InputError if inputs are needed and cannot be made, TraceError if `torch.export`
    cannot capture the model.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    signature = Signature.of(model)
    if args is None and kwargs is None:
        inputs = make_example(model)
    else:
        inputs = signature.bind(args or (), kwargs or {})
    leaves = resize(flatten(inputs), TRACE_SIZES)
    example = unflatten(inputs, leaves)
    exported = _export(frozen_copy(model), example, leaves)
    return _traced(exported, type(model).__name__, signature, inputs, leaves)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode; layers that cache their first graph are told not to."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    for module in frozen.modules():
        if getattr(module, "cached", False) is True:
            setattr(module, "cached", False)  # noqa: B010  (nn.Module types attributes as tensors)
    return frozen


def _export(model: nn.Module, example: dict[str, Any], leaves: dict[str, Any]) -> ExportedProgram:
    counts = row_counts(leaves)

    def dynamic(name: str, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return {dim: Dim.AUTO for dim in range(leaf.dim()) if (name, dim) in counts}
        return Dim.AUTO if isinstance(leaf, int) and not isinstance(leaf, bool) else None

    shapes = unflatten(example, {name: dynamic(name, leaf) for name, leaf in leaves.items()})
    args, kwargs = as_call(example)
    with _quiet(), symbolic_int(model), torch.no_grad():
        _initialize_lazy(model, example)
        try:
            exported = torch.export.export(
                model,
                args,
                kwargs,
                dynamic_shapes=None if args else shapes,
                strict=False,
            )
            decomposed: ExportedProgram = exported.run_decompositions({})
            return decomposed
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise TraceError(
                f"torch.export could not capture {type(model).__name__}: "
                f"{type(error).__name__}: {first}"
            ) from error


def _initialize_lazy(model: nn.Module, example: dict[str, Any]) -> None:
    if any(
        isinstance(p, UninitializedTensorMixin) for p in [*model.parameters(), *model.buffers()]
    ):
        model(**example)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns about its own internals; none of that is the user's to act on."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _traced(
    exported: ExportedProgram,
    name: str,
    signature: Signature,
    inputs: dict[str, Any],
    leaves: dict[str, Any],
) -> Traced:
    tensors: dict[str, Tensor] = {**exported.state_dict, **exported.constants}
    specs = {s.arg.name: s for s in exported.graph_signature.input_specs}
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    order = iter(leaves.items())
    used: list[str] = []
    constants: dict[str, Any] = {}
    mode = torch._guards.detect_fake_mode([n.meta.get("val") for n in exported.graph.nodes])
    assert mode is not None
    program = Program(graph, {}, mode, name=name)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and specs[node.name].kind is InputKind.USER_INPUT:
            leaf, value = next(order)
            if not isinstance(node.meta["val"], (Tensor, torch.SymInt)):
                constants[leaf] = value
                continue
            used.append(leaf)
            copies[node] = graph.placeholder(leaf.replace(".", "_"))
        elif node.op == "placeholder":
            target = str(specs[node.name].target)
            program.tensors[target] = tensors[target].detach()
            copies[node] = graph.get_attr(target)
        elif node.target not in _RUNTIME_CHECKS:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].name = node.name
        else:
            continue
        copies[node].meta = {"val": node.meta.get("val")}
        record = Record(None, Domain.OTHER, _module_path(node))
        set_record(Instr(copies[node]), record)
    drop_dead(graph)
    kept = {n.target for n in graph.nodes if n.op == "get_attr"}
    program.tensors = {k: v for k, v in program.tensors.items() if k in kept}
    _name_axes(program)
    spec = exported.call_spec.out_spec
    assert spec is not None
    return Traced(annotate(program), signature, inputs, tuple(used), constants, spec)


def _module_path(node: fx.Node) -> str:
    """Dotted path of the innermost user module that made `node`."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    paths = [p for p in stack if not p.startswith("_empty")]
    return paths[-1] if paths else ""


def _name_axes(program: Program) -> None:
    """Give the sizes of the inputs the names people use: N for rows, E for edges."""
    for instr in program.inputs:
        value = instr.fake
        shape = value.shape if isinstance(value, Tensor) else [value]
        for size in shape:
            if isinstance(size, torch.SymInt):
                expr = size.node.expr
                letter = "E" if len(shape) == 2 and shape[0] == 2 else "N"
                if expr.is_Symbol and expr not in program.axes:
                    taken = sum(n.startswith(letter) for n in program.axes.values())
                    program.axes[expr] = letter + (str(taken) if taken else "")
