"""`gnnfx.optimize`: the whole road from a model to the module that replaces it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx.backend.call import Call
from gnnfx.backend.module import KeptModel, OptimizedModule
from gnnfx.backend.prepared import captured, said_of
from gnnfx.calibrate import calibrate
from gnnfx.errors import (
    CalibrationError,
    InputError,
    MismatchError,
    PolicyError,
    TraceError,
    UnstableError,
)
from gnnfx.fallback import Limit, fall_back
from gnnfx.figures import Figures
from gnnfx.frontend.signature import as_call, flatten
from gnnfx.frontend.trace import Traced, frozen_copy, named_tensors
from gnnfx.heap import compilation
from gnnfx.ir.program import Program
from gnnfx.pass_manager import AfterEach, Pass, PassContext, PassManager, Site
from gnnfx.passes.choose_qparams import ChooseQparams
from gnnfx.passes.fold_quantization import FoldQuantization
from gnnfx.pipeline import FLOAT_FACTS, float_passes, lower_passes, observe_passes, quantize_passes
from gnnfx.policy import Policy, as_policy
from gnnfx.report import Report
from gnnfx.rounding import compare
from gnnfx.tune import Build, keep_fastest
from gnnfx.verify_outputs import verify_outputs

_LEAST_SQNR = 3.0  # dB: half of the power is noise


@compilation()
def optimize(
    model: nn.Module,
    policy: str | Policy = "int8",
    example_inputs: tuple[Any, ...] | None = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
    max_drop: float | None = None,
    metric: Callable[[nn.Module], Any] | None = None,
    tune: bool = False,
) -> OptimizedModule:
    """A module that does what `model` does in eval mode, in less time and memory.

    model: any module that does message passing; it is not modified.
    policy: 'fp32' (same answers), 'int8', 'int4' (4-bit weights, 8-bit activations), or a Policy.
    example_inputs, example_kwargs: one example of each argument you will pass; graphs of other
        sizes work too.  Without them they are made from forward's signature where possible.
    calibration: argument tuples (or dicts) whose value ranges fix the activation scales.
        Without it, scales are computed from the values of each call.
    metric, max_drop: a function that gives a number for a module that is called as the model is,
        the higher the better, and how far it may fall below the model's own.  Layers whose integers
        cost too much get more bits or stay float32, see `gnnfx.fallback`; `report.trials` tells.
    tune: time alternatives on the example and keep the fastest, layers or all in float32 and the
        model itself among them; `report.tuned` tells.  Needs an example, and takes some seconds a
        layer.

    Submodules that cannot be captured, or the whole model, run as they are and are named in the
    report with the reason; so does a model in another precision that the passes cannot take.
    Raises InputError, PolicyError or CalibrationError for what the caller can mend, TraceError if
    nothing of a model that shall be quantized can be captured, MismatchError if the program does
    not compute what the model computes.  Warns if, on the first calibration sample, the noise of
    rounding has half the power of the last layer's result or more, unless max_drop judges.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    limit = _limit(max_drop, metric)
    if tune and (limit is not None or (example_inputs is None and example_kwargs is None)):
        lacks = "no example_inputs" if limit is None else "max_drop, too"
        raise InputError(f"tune=True times calls with example_inputs and no max_drop, got {lacks}")
    ctx = PassContext(as_policy(policy))
    name = policy if isinstance(policy, str) else "custom"
    if (precision := _other_precision(model)) and ctx.policy != Policy():
        raise InputError(
            f"policy {name!r} takes models in float32, and {precision}; give it model.float()"
        )
    try:
        traced = capture(model, ctx, example_inputs, example_kwargs)
    except TraceError as error:
        if ctx.policy.quantize is not None:
            raise
        return _kept(model, name, str(error))
    if limit is None:
        compiled = _tuned if tune and precision is None else _compile
        module = compiled(model, traced, ctx, name, calibration)
        _warn_of_noise(module.report.figures)
        return module
    samples = None if calibration is None else list(_listed(calibration))
    floats = _run_float_passes(model, traced, ctx)

    def build(changed: Policy) -> tuple[OptimizedModule, tuple[str, ...]]:
        again = replace(ctx, policy=changed, ranges={}, remarks=list(ctx.remarks))
        program = _run_last_passes(model, traced, floats, again, samples)
        module = _module(model, traced, program, again, name)
        folded = [r.module for r in again.remarks if r.pass_name == FoldQuantization.name]
        return module, tuple(dict.fromkeys(folded))

    return fall_back(frozen_copy(model), ctx.policy, build, limit, as_call(traced.example))


def _limit(max_drop: float | None, metric: Callable[[nn.Module], Any] | None) -> Limit | None:
    if max_drop is None and metric is not None:
        raise InputError("metric judges together with max_drop, which is None; expected a number")
    return None if max_drop is None else Limit(max_drop, metric)


def _compile(
    model: nn.Module,
    traced: Traced,
    ctx: PassContext,
    name: str,
    calibration: Iterable[Any] | None,
) -> OptimizedModule:
    """The module of the policy in `ctx`, which the report calls `name`."""
    try:
        program = run_passes(model, traced, ctx, calibration)
    except (RuntimeError, ValueError) as error:
        reason = _other_precision(model)
        if reason is None and isinstance(error, MismatchError):
            reason = _why_it_differs(model, traced, error)
        if reason is None or ctx.policy.quantize is not None:
            raise
        return _kept(model, name, reason)
    return _module(model, traced, program, ctx, name)


def _kept(model: nn.Module, name: str, reason: str) -> KeptModel:
    """The model as it is, with a report that says why."""
    return KeptModel(frozen_copy(model), Report.of_kept(name, named_tensors(model), reason))


def _tuned(
    model: nn.Module,
    traced: Traced,
    ctx: PassContext,
    name: str,
    calibration: Iterable[Any] | None,
) -> OptimizedModule:
    """The fastest module of the policy in `ctx` on the example, or the model as it is."""
    samples = None if calibration is None else list(_listed(calibration))

    def build_with(policy: Policy) -> Build:
        def build(declined: frozenset[Site]) -> tuple[OptimizedModule, tuple[Site, ...]]:
            again = replace(ctx, policy=policy, declined=declined, choices=[])
            again = replace(again, ranges={}, masks={}, remarks=list(ctx.remarks))
            return _compile(model, traced, again, name, samples), tuple(again.choices)

        return build

    def kept(reason: str) -> Report:
        return Report.of_kept(name, named_tensors(model), reason)

    quantizes = ctx.policy.quantize is not None
    in_float = build_with(replace(ctx.policy, quantize=None)) if quantizes else None
    example = as_call(traced.example)
    return keep_fastest(frozen_copy(model), build_with(ctx.policy), in_float, example, kept)


def _module(
    model: nn.Module, traced: Traced, program: Program, ctx: PassContext, name: str
) -> OptimizedModule:
    report = Report.of(name, named_tensors(model), program, ctx.remarks, traced.kept, ctx.figures)
    # A graph that takes a branch which was not captured runs as the model would run it.
    eager = frozen_copy(model) if any(program.find("assume")) else None
    return OptimizedModule(Call.of(traced), program, report, eager)


def _other_precision(model: nn.Module) -> str | None:
    """A parameter that is not float32, in words, or None."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            return f"parameter {name!r} is {parameter.dtype}"
    return None


def _why_it_differs(model: nn.Module, traced: Traced, error: MismatchError) -> str | None:
    """What else than a fault of the passes explains `error`, or None."""
    if isinstance(error, UnstableError):
        return str(error)
    try:
        verify_outputs(model, traced, traced.program)
    except MismatchError as captured:
        return f"capturing the model does not reproduce it: {captured.difference}"
    return None


def capture(
    model: nn.Module,
    ctx: PassContext,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: dict[str, Any] | None = None,
) -> Traced:
    """The traced program, its inputs described in `ctx`."""
    args = None if example_inputs is None else as_tuple(example_inputs)
    traced = captured(model, args, example_kwargs)
    ctx.remarks += said_of(model)
    if args is not None or example_kwargs is not None:
        leaves = flatten(traced.example)
        ctx.densities = traced.densities
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
    program = _run_float_passes(model, traced, ctx, after_each)
    return _run_last_passes(model, traced, program, ctx, calibration, after_each)


def _run_float_passes(
    model: nn.Module, traced: Traced, ctx: PassContext, after_each: AfterEach | None = None
) -> Program:
    program = PassManager(float_passes(ctx.policy)).run(traced.program, ctx, after_each=after_each)
    if ctx.policy.quantize is not None:
        # Where rounding to float32 decides, nothing can be said about rounding to integers.
        with contextlib.suppress(UnstableError):
            verify_outputs(model, traced, program, ctx.masks)
    return program


def _run_last_passes(
    model: nn.Module,
    traced: Traced,
    program: Program,
    ctx: PassContext,
    calibration: Iterable[Any] | None,
    after_each: AfterEach | None = None,
) -> Program:
    """Quantize a float program, if the policy in `ctx` does, and lower it."""
    if ctx.policy.quantize is not None:
        program = _quantize(program, ctx, traced, calibration, after_each)
    lower = PassManager(lower_passes(), FLOAT_FACTS)
    program = lower.run(program, ctx, after_each=after_each)
    if ctx.policy.quantize is None:
        verify_outputs(model, traced, program, ctx.masks)
    return program


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
        raise PolicyError(f"the policy would quantize nothing in this model: {ctx.reasons()}")
    first: list[tuple[Any, ...]] = []
    if calibration is not None:
        samples = (_leaves(traced, sample, n) for n, sample in enumerate(_listed(calibration)))
        ctx.ranges = calibrate(program, _noting_first(samples, first), ctx.policy.quantize)

    def compare_rounding(pass_: Pass, before: Program, after: Program) -> None:
        if pass_.name == ChooseQparams.name and first:
            ctx.figures = compare(before, after, first[0])
        if after_each is not None:
            after_each(pass_, before, after)

    quantize = PassManager(quantize_passes(), FLOAT_FACTS | {"observed"})
    return quantize.run(program, ctx, after_each=compare_rounding)


def _warn_of_noise(figures: Figures | None) -> None:
    """Warn where rounding leaves little of the last layer's result."""
    if figures is None or not figures.layers or figures.layers[-1].sqnr >= _LEAST_SQNR:
        return
    last = figures.layers[-1]
    warnings.warn(
        f"rounding leaves little of what {last.module or 'the model'} gives: a signal-to-noise "
        f"ratio of {last.sqnr:.1f} dB on the first calibration sample. Where few values are far "
        f"larger than the others, observer='percentile' or scales='degree' may help; so may more "
        f"bits, max_drop=..., or training with gnnfx.prepare",
        stacklevel=4,
    )


def _noting_first(
    samples: Iterable[tuple[Any, ...]], first: list[tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    for sample in samples:
        if not first:
            first.append(sample)
        yield sample


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
