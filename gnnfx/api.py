"""`gnnfx.optimize`: the whole road from a model to the module that replaces it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx.agreement import disagreement
from gnnfx.backend.call import Call
from gnnfx.backend.module import KeptModel, OptimizedModule
from gnnfx.calibrate import calibrate
from gnnfx.errors import (
    AssumptionError,
    CalibrationError,
    InputError,
    MismatchError,
    PolicyError,
    TraceError,
)
from gnnfx.frontend.signature import as_call, flatten, input_name
from gnnfx.frontend.trace import Traced, frozen_copy, trace
from gnnfx.ir.program import Program
from gnnfx.pass_manager import AfterEach, PassContext, PassManager
from gnnfx.pipeline import FLOAT_FACTS, float_passes, lower_passes, observe_passes, quantize_passes
from gnnfx.policy import Policy, as_policy
from gnnfx.report import Report

_ROWS_LOOKED_AT = 1000


def optimize(
    model: nn.Module,
    policy: str | Policy = "int8",
    example_inputs: tuple[Any, ...] | None = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
) -> OptimizedModule:
    """A module that does what `model` does in eval mode, in less time and memory.

    model: any module that does message passing; it is not modified.
    policy: 'fp32' (same answers), 'int8', 'int4' (4-bit weights, 8-bit activations), or a Policy.
    example_inputs, example_kwargs: one example of each argument you will pass; graphs of other
        sizes work too.  Without them they are made from forward's signature where possible.
    calibration: argument tuples (or dicts) whose value ranges fix the activation scales.
        Without it, scales are computed from the values of each call.

    Submodules that cannot be captured, or the whole model, run as they are and are named in the
    report with the reason; so does a model in another precision that the passes cannot take.
    Raises InputError, PolicyError or CalibrationError for what the caller can mend, TraceError if
    nothing of a model that shall be quantized can be captured, MismatchError if the program does
    not compute what the model computes.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    ctx = PassContext(as_policy(policy))
    name = policy if isinstance(policy, str) else "custom"
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if (precision := _other_precision(model)) and ctx.policy != Policy():
        raise InputError(
            f"policy {name!r} takes models in float32, and {precision}; give it model.float()"
        )
    try:
        traced = capture(model, ctx, example_inputs, example_kwargs)
    except TraceError as error:
        if ctx.policy.quantize is not None:
            raise
        return KeptModel(frozen_copy(model), Report.of_kept(name, before, str(error)))
    try:
        program = run_passes(model, traced, ctx, calibration)
    except (RuntimeError, ValueError) as error:
        reason = precision
        if reason is None and isinstance(error, MismatchError):
            reason = _capture_differs(model, traced)
        if reason is None or ctx.policy.quantize is not None:
            raise
        return KeptModel(frozen_copy(model), Report.of_kept(name, before, reason))
    report = Report.of(name, before, program, ctx.remarks, traced.kept)
    # A graph that takes a branch which was not captured runs as the model would run it.
    eager = frozen_copy(model) if any(program.find("assume")) else None
    return OptimizedModule(Call.of(traced), program, report, eager)


def _other_precision(model: nn.Module) -> str | None:
    """A parameter that is not float32, in words, or None."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            return f"parameter {name!r} is {parameter.dtype}"
    return None


def _capture_differs(model: nn.Module, traced: Traced) -> str | None:
    """How the captured program, before any pass, differs from the model, or None."""
    try:
        verify_outputs(model, traced, traced.program)
    except MismatchError as error:
        return f"capturing the model does not reproduce it: {error}"
    return None


def capture(
    model: nn.Module,
    ctx: PassContext,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: dict[str, Any] | None = None,
) -> Traced:
    """The traced program, its inputs described in `ctx`."""
    args = None if example_inputs is None else as_tuple(example_inputs)
    traced = trace(model, args, example_kwargs)
    if args is not None or example_kwargs is not None:
        leaves = flatten(traced.example)
        ctx.densities = _densities(leaves)
        ctx.example = tuple(leaves[name] for name in traced.leaves)
    named = model.named_parameters(remove_duplicate=False)
    ctx.gradients = {name: p.grad for name, p in named if p.grad is not None}
    return traced


def run_passes(
    model: nn.Module,
    traced: Traced,
    ctx: PassContext,
    calibration: Iterable[Any] | None = None,
    after_each: AfterEach | None = None,
) -> Program:
    """The program after all passes of the policy in `ctx`, compared with `model` while float."""
    program = PassManager(float_passes(ctx.policy)).run(traced.program, ctx, after_each=after_each)
    if ctx.policy.quantize is not None:
        verify_outputs(model, traced, program, ctx.masks)
        program = _quantize(program, ctx, traced, calibration, after_each)
    lower = PassManager(lower_passes(), FLOAT_FACTS)
    program = lower.run(program, ctx, after_each=after_each)
    if ctx.policy.quantize is None:
        verify_outputs(model, traced, program, ctx.masks)
    return program


def _densities(leaves: dict[str, Any]) -> dict[str, float]:
    """Share of non-zeros in the first rows of each feature matrix of the user's example."""
    return {
        input_name(name): float((leaf[:_ROWS_LOOKED_AT] != 0).float().mean())
        for name, leaf in leaves.items()
        if isinstance(leaf, Tensor) and leaf.dim() == 2 and leaf.is_floating_point() and len(leaf)
    }


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as positional arguments; a lone value is the only one."""
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)


def _quantize(
    program: Program,
    ctx: PassContext,
    traced: Traced,
    calibration: Iterable[Any] | None,
    after_each: AfterEach | None,
) -> Program:
    assert ctx.policy.quantize is not None
    observe = PassManager(observe_passes(), FLOAT_FACTS)
    program = observe.run(program, ctx, after_each=after_each)
    if not any(program.find("observe")):
        reasons = "; ".join(f"{r.module or r.instr}: {r.text}" for r in ctx.remarks if not r.done)
        raise PolicyError(f"the policy would quantize nothing in this model: {reasons}")
    if calibration is not None:
        samples = (_leaves(traced, sample, n) for n, sample in enumerate(_listed(calibration)))
        ctx.ranges = calibrate(program, samples, ctx.policy.quantize)
    quantize = PassManager(quantize_passes(), FLOAT_FACTS | {"observed"})
    return quantize.run(program, ctx, after_each=after_each)


def _listed(calibration: Any) -> Iterable[Any]:
    if isinstance(calibration, (Tensor, dict)) or not isinstance(calibration, Iterable):
        raise CalibrationError(
            f"calibration must be an iterable of argument tuples, got {type(calibration).__name__}"
        )
    return calibration


def _leaves(traced: Traced, sample: Any, number: int) -> tuple[Any, ...]:
    """The program's inputs of one calibration sample."""
    if not isinstance(sample, (tuple, list, dict)):
        raise CalibrationError(
            f"calibration[{number}] must be a tuple of forward arguments, "
            f"got {type(sample).__name__}"
        )
    args, kwargs = ((), sample) if isinstance(sample, dict) else (tuple(sample), {})
    given = flatten(traced.signature.bind(args, kwargs))
    missing = [name for name in traced.leaves if name not in given]
    if missing:
        raise CalibrationError(f"calibration[{number}] lacks the arguments {missing}")
    for name in traced.leaves:
        value = given[name]
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            raise CalibrationError(
                f"calibration[{number}]: argument {name!r} holds NaN or Inf; expected finite values"
            )
    return tuple(given[name] for name in traced.leaves)


def verify_outputs(
    model: nn.Module, traced: Traced, program: Program, masks: Mapping[str, Tensor] | None = None
) -> None:
    """Compare a float program with the model, masked, on graphs of several sizes."""
    eager = frozen_copy(model)
    for named in (eager.named_parameters, eager.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if masks and name in masks:
                tensor.mul_(masks[name])
    for inputs in traced.checks:
        leaves = flatten(inputs)
        with torch.no_grad():
            args, kwargs = as_call(inputs)
            expected = pytree.tree_leaves(eager(*args, **kwargs))
            try:
                got = program.run(*(leaves[name] for name in traced.leaves))
            except AssumptionError:
                continue
        for number, (want, have) in enumerate(zip(expected, got, strict=True)):
            if isinstance(want, Tensor):
                _verify_output(model, program, number, want, have)


def _verify_output(
    model: nn.Module, program: Program, number: int, want: Tensor, have: Tensor
) -> None:
    if (gap := disagreement(want, have)) is not None:
        source = program.results[number]
        raise MismatchError(
            f"output {number} of {type(model).__name__} {gap} after optimization, at "
            f"{source.name} of module {source.module or '(top)'!r}; this is a fault of gnnfx, "
            f"please report it"
        )
