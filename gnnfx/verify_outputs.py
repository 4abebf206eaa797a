"""Compare a float program with the model that it was made from, on graphs of several sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnfx.agreement import disagreement, is_as_exact
from gnnfx.errors import AssumptionError, MismatchError, UnstableError
from gnnfx.frontend.signature import as_call, flatten, map_atoms
from gnnfx.frontend.trace import Traced, frozen_copy
from gnnfx.ir.program import Program

# Noise as large as the rounding of a few float32 operations, drawn a few times.
_NOISE = 4 * torch.finfo(torch.float32).eps
_DRAWS = 5


def verify_outputs(
    model: nn.Module, traced: Traced, program: Program, masks: Mapping[str, Tensor] | None = None
) -> None:
    """Compare a float program with the model, masked, on the graphs that it was traced with.

    Raises MismatchError where they differ by more than the order of sums explains, and its subclass
    UnstableError where the model itself differs as much once its numbers change by float32 noise,
    as it does when it keeps the best of several nodes whose scores are equal.
    """
    eager = frozen_copy(model)
    for named in (eager.named_parameters, eager.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if masks and name in masks:
                tensor.mul_(masks[name])
    for inputs in traced.checks:
        leaves = flatten(inputs)
        expected = outputs_of(eager, inputs)
        try:
            with torch.no_grad():
                got = program.run(*(leaves[name] for name in traced.leaves))
        except AssumptionError:
            continue
        exact: list[Any] | None = None
        for number, (want, have) in enumerate(zip(expected, got, strict=True)):
            if not isinstance(want, Tensor) or (gap := disagreement(want, have)) is None:
                continue
            exact = exact or _in_float64(eager, inputs)
            if exact is not None and is_as_exact(exact[number], want, have):
                continue
            kind = type(model).__name__
            if want.shape == have.shape and _is_unstable(eager, inputs, number, want):
                raise UnstableError(
                    f"output {number} of {kind} {gap} after optimization; rounding decides it: the "
                    f"model's own changes as much when its numbers change by float32 noise"
                )
            source = program.returned[number]
            raise MismatchError(
                f"output {number} of {kind} {gap} after optimization, at {source.name} of module "
                f"{source.module or '(top)'!r}; this is a fault of gnnfx, please report it",
                difference=f"output {number} {gap}",
            )


def outputs_of(model: nn.Module, inputs: dict[str, Any]) -> list[Any]:
    """The leaves of what `model` gives for arguments by name, without gradients."""
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return pytree.tree_leaves(model(*args, **kwargs))


def _in_float64(model: nn.Module, inputs: dict[str, Any]) -> list[Any] | None:
    """What `model` gives when it rounds to float64, or None if it computes in float32 alone."""

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    try:
        return outputs_of(frozen_copy(model).double(), map_atoms(double, inputs))
    except Exception:  # whatever a model's own code raises on another dtype
        return None


def _is_unstable(model: nn.Module, inputs: dict[str, Any], number: int, want: Tensor) -> bool:
    """Whether float32 noise on weights and inputs changes output `number` as a mismatch would."""
    generator = torch.Generator(want.device).manual_seed(0)

    def noisy(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_sparse:
            return value
        noise = torch.randn(value.shape, generator=generator, device=value.device)
        return value * (1 + _NOISE * noise.to(value.dtype))

    for _ in range(_DRAWS):
        shaken = frozen_copy(model)
        for parameter in shaken.parameters():
            parameter.copy_(noisy(parameter))
        if disagreement(want, outputs_of(shaken, map_atoms(noisy, inputs))[number]) is not None:
            return True
    return False
