"""`gnnfx.prepare` and `gnnfx.convert`: around the user's own training loop.

prepared = gnnfx.prepare(model, "int4-dq", (x, edge_index))
...                                    # any optimizer, any loss
module = gnnfx.convert(prepared)       # integers, with the ranges that training found
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx.api import as_tuple
from gnnfx.backend.call import Call
from gnnfx.backend.module import OptimizedModule
from gnnfx.backend.prepared import Origin, PreparedModule, captured, said_of
from gnnfx.backend.split import split
from gnnfx.errors import CalibrationError, InputError, PolicyError, UnstableError
from gnnfx.frontend.signature import as_call
from gnnfx.frontend.trace import Traced, frozen_copy
from gnnfx.frontend.training import without_dropout
from gnnfx.heap import compilation
from gnnfx.ir.program import Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.pipeline import (
    FLOAT_FACTS,
    convert_passes,
    lower_passes,
    quantize_passes,
    training_passes,
)
from gnnfx.policy import Policy, as_policy
from gnnfx.report import Report
from gnnfx.verify_outputs import verify_outputs


@compilation()
def prepare(
    model: nn.Module,
    policy: str | Policy = "int8-dq",
    example_inputs: tuple[Any, ...] | None = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
) -> PreparedModule:
    """A copy of `model` that trains as integer kernels will run it.

    It is called as the model is, has parameters and buffers under the model's names, and follows
    .train() and .eval(); protective masks draw on torch's global generator, as dropout does.  What
    the model does only in training, other than dropout and batch norm, is left out with a warning.

    model: any module that does message passing, trained or not; it is not modified.
    policy: 'int8-dq', 'int4-dq', 'fp32' (trains in float), or a Policy.
    example_inputs, example_kwargs: one example of each argument you will pass.

    Raises InputError, PolicyError or TraceError for what the caller can mend, MismatchError if
    the program does not compute what the model computes.
    """
    chosen = as_policy(policy)
    args = None if example_inputs is None else as_tuple(example_inputs)
    traced = captured(model, args, example_kwargs, training=True)
    name = policy if isinstance(policy, str) else "custom"
    return prepare_traced(model, traced, PassContext(chosen, remarks=said_of(model)), name)


def prepare_traced(
    model: nn.Module, traced: Traced, ctx: PassContext, name: str = "fp32"
) -> PreparedModule:
    """What `prepare` makes of `model`, whose program in training form is `traced`.

    name: of the policy, for the report.
    """
    chosen = ctx.policy
    program = PassManager(training_passes(chosen)).run(traced.program, ctx)
    if chosen.quantize is not None and not any(program.find("observe")):
        raise PolicyError(f"the policy would quantize nothing in this model: {ctx.reasons()}")
    # Where rounding to float32 decides, a program that is trained is as right as the model.
    with contextlib.suppress(UnstableError):
        verify_outputs(model, traced, program)
    _warn_of_differences(model, traced, program)
    return PreparedModule(model, Origin(traced, program, split(program), ctx, name))


def _warn_of_differences(model: nn.Module, traced: Traced, program: Program) -> None:
    """Compare train modes without dropout and rounding: what differs was not captured.

    A module that was prepared before has been compared with what it was made from.
    """
    if isinstance(model, PreparedModule):
        return
    bare = _without(program, "observe", "dropout")
    module = PreparedModule(model, Origin(traced, bare, split(bare), PassContext(), "fp32"))
    eager = frozen_copy(model).train()
    args, kwargs = as_call(traced.checks[0])
    state = torch.random.get_rng_state()
    try:
        with torch.no_grad(), without_dropout():
            want = [t for t in pytree.tree_leaves(eager(*args, **kwargs)) if isinstance(t, Tensor)]
            got = [t for t in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, Tensor)]
    except ValueError:
        return  # batch norm refuses a single row: a batch of one graph tells nothing
    finally:
        torch.random.set_rng_state(state)
    if len(want) != len(got) or not all(map(_close, want, got)):
        warnings.warn(
            f"in train mode, {type(model).__name__} does something besides dropout and batch norm "
            f"that it does not do in eval mode; the prepared module leaves that out",
            stacklevel=4,
        )


def _close(want: Tensor, got: Tensor) -> bool:
    scale = float(want.abs().max()) if want.numel() else 1.0
    return want.shape == got.shape and torch.allclose(got, want, rtol=0, atol=1e-3 * scale + 1e-6)


def _without(program: Program, *ops: str) -> Program:
    """The program whose instructions of these ops are their operands."""
    rewriter = Rewriter(program, "prepare")
    for instr in rewriter.program.find(*ops):
        rewriter.replace(instr, instr.arg)
    return rewriter.finish()


@compilation()
def convert(prepared: PreparedModule) -> OptimizedModule:
    """The module that executes what `prepared` simulates in eval mode, on integers.

    `prepared` is not modified and can be trained further.

    Raises InputError for a module that `prepare` did not make, CalibrationError if a quantizer has
    seen no values, PolicyError if it rounds where the paper does.
    """
    if not isinstance(prepared, PreparedModule):
        raise InputError(
            f"prepared must be the result of gnnfx.prepare, got {type(prepared).__name__}"
        )
    origin = prepared.origin
    quantize = origin.ctx.policy.quantize
    if quantize is not None and quantize.training.placement == "paper":
        raise PolicyError(
            "placement='paper' rounds where no integer kernel does; it is there to compare, and "
            "cannot be converted; expected a module prepared with placement='kernels'"
        )
    ctx = replace(
        origin.ctx,
        remarks=list(origin.ctx.remarks),
        qparams={},
        degree_scales={},
        weight_scales={},
        densities=origin.traced.densities,
    )
    home = next((t.device for t in origin.program.tensors.values()), torch.device("cpu"))
    for name, quantizer in prepared.quantizers().items():
        if not bool(quantizer.range.seen):
            raise CalibrationError(
                f"the quantizer of value {name!r} has seen no values; run the prepared module in "
                f"train mode before converting it"
            )
        scale, zero_point = quantizer.qparams()
        ctx.qparams[name] = scale.detach().to(home).clone(), zero_point.to(home).clone()
        if quantizer.by_degree:
            ctx.degree_scales[name] = quantizer.degree_scale.to(home).clone()
    for param, step in prepared.weight_steps().items():
        ctx.weight_scales[param] = step.to(home).clone()
    tensors: dict[str, Tensor] = dict(prepared.named_buffers(remove_duplicate=False))
    tensors.update(prepared.named_parameters(remove_duplicate=False))
    program = origin.program.copy()
    program.tensors = {n: tensors[n].detach().to(home).clone() for n in program.tensors}
    program = PassManager(convert_passes(), FLOAT_FACTS).run(program, ctx)
    if ctx.policy.quantize is not None:
        program = PassManager(quantize_passes(), FLOAT_FACTS | {"observed"}).run(program, ctx)
    program = PassManager(lower_passes(), FLOAT_FACTS).run(program, ctx)
    before = {n: t for n, t in tensors.items() if not n.startswith("_")}
    report = Report.of(origin.policy, before, program, ctx.remarks)
    device = next((t.device for t in tensors.values()), home)
    return OptimizedModule(Call.of(origin.traced), program, report).to(device)
