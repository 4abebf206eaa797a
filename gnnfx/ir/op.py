"""The op registry: one declaration per op, from which everything else about it is derived.

    AGGREGATE = register(OpDef(name="aggregate", reference=..., fake=..., cost=..., samples=...,
                               impls=(Impl("numba", "cpu", numba, reject_numba), ...)))

declares `torch.ops.gnnfx.aggregate`: its schema comes from the annotations of `reference`, its
shape function from `fake`, its gradient (where there is one) from differentiating `reference`,
and each call runs the first implementation of the arguments' device that does not reject them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_LIBRARY = torch.library.Library("gnnfx", "DEF")
_OPS: dict[str, OpDef] = {}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call must do at the least: arithmetic, and memory traffic in bytes.

    gathered: of the bytes, those of rows that are read in the order of an index.
    """

    flops: int
    bytes: int
    gathered: int = 0


@dataclass(frozen=True, slots=True)
class Impl:
    """One way to run an op.

    `reject` takes the op's arguments and says why `fn` cannot take them, or None.
    """

    name: str
    device: str
    fn: Callable[..., Any]
    reject: Callable[..., str | None]


@dataclass(frozen=True, slots=True)
class OpDef:
    """All facts about one op.

    reference: what the op means, in plain torch; every implementation is tested against it.
    fake: shape, dtype and device of the result; raises ValueError for arguments that the op
        does not take.  It is the type rule of the verifier and the FakeTensor function of torch.
    cost: least work of a call, from its (real or fake) arguments.
    samples: arguments that every implementation is tried on, by device.
    differentiable: whether gradients may flow through `reference`.
    gradient: its gradients in less time than by differentiating the reference, from the gradient
        of the result, the result, which arguments need one, and the arguments; None where it has
        none.  For ops with one result.
    reads_result: whether `gradient` reads the result of a call with these arguments; if not, it
        is None there, and whoever has the result may change it.
    random: whether two calls in training may differ, so that no result may stand for another.
    sized_by_values: whether the values of the arguments decide the size of a result.
    """

    name: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    cost: Callable[..., Cost]
    samples: Callable[..., Iterator[tuple[Any, ...]]]
    impls: tuple[Impl, ...] = ()
    differentiable: bool = False
    gradient: Callable[..., tuple[Any, ...] | None] | None = None
    reads_result: Callable[..., bool] | None = None
    random: bool = False
    sized_by_values: bool = False

    @property
    def torch_op(self) -> Any:
        """The registered `torch.ops.gnnfx.*` overload."""
        return getattr(torch.ops.gnnfx, self.name).default

    def select(self, *args: Any, **kwargs: Any) -> Impl:
        """The implementation that a call with these arguments runs."""
        device = _device_of(args, kwargs)
        found = self._fitting(device, args, kwargs)
        return found or Impl("reference", device, self.reference, accept)

    def refusals(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """Why each implementation of this device that was passed over was passed over."""
        device = _device_of(args, kwargs)
        reasons = {i.name: i.reject(*args, **kwargs) for i in self.impls if i.device == device}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the implementation that fits, past torch's dispatcher: no gradients, no tracing."""
        found = self._fitting(_device_of(args, kwargs), args, kwargs)
        return (self.reference if found is None else found.fn)(*args, **kwargs)

    def _fitting(self, device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Impl | None:
        for impl in self.impls:
            if impl.device == device and impl.reject(*args, **kwargs) is None:
                return impl
        return None


def register(op: OpDef) -> OpDef:
    """Declare `op` to gnnfx and to torch; raises ValueError if the name is taken."""
    if op.name in _OPS:
        raise ValueError(f"op {op.name!r} is already registered")
    schema = torch.library.infer_schema(op.reference, mutates_args=())
    tags = [torch.Tag.pt2_compliant_tag]
    if op.random:
        tags.append(torch.Tag.nondeterministic_seeded)
    if op.sized_by_values:
        tags.append(torch.Tag.dynamic_output_shape)
    _LIBRARY.define(op.name + schema, tags=tuple(tags))
    _LIBRARY.impl(op.name, op.run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gnnfx::{op.name}", op.fake, lib=_LIBRARY)
    if op.differentiable:
        _register_gradient(op)
    _OPS[op.name] = op
    return op


def all_ops() -> list[OpDef]:
    """Every registered op, in order of registration."""
    return list(_OPS.values())


def find_op(target: object) -> OpDef | None:
    """The declaration behind an fx target such as `torch.ops.gnnfx.aggregate.default`."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "gnnfx":
        return None
    return _OPS.get(target._opname)


def op_called(name: str) -> OpDef | None:
    """The declaration of the op of that name, or None if no such op is registered."""
    return _OPS.get(name)


def accept(*args: Any, **kwargs: Any) -> None:
    """The `reject` of an implementation that takes all arguments."""


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if args and isinstance(args[0], Tensor):  # as in nearly every call
        return args[0].device.type
    every = (*args, *kwargs.values())
    flat = (b for a in every for b in (a if isinstance(a, (list, tuple)) else (a,)))
    return next((a.device.type for a in flat if isinstance(a, Tensor)), "cpu")


def _wanted(places: Any, needs: Any) -> list[int]:
    """The places of the tensors, alone or in lists, that need a gradient.

    The dispatcher leaves out last arguments that are what they default to, so `needs` is shorter.
    """
    wanted: list[int] = []
    for place, need in zip(places, needs, strict=False):
        if isinstance(need, list):
            wanted += [i for i, each in zip(place, need, strict=True) if each]
        elif need:
            wanted.append(place)
    return wanted


def _register_gradient(op: OpDef) -> None:
    """The op's own gradient, or that of the reference, recomputed in the backward pass."""
    # The dispatcher leaves out last arguments that are what they default to.
    arguments = len(inspect.signature(op.reference).parameters)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        leaves, ctx.spec = pytree.tree_flatten(inputs)
        read = op.reads_result is not None and op.reads_result(*inputs)
        tensors = (a for a in leaves if isinstance(a, Tensor))
        ctx.save_for_backward(output if read else None, *tensors)
        ctx.others = [None if isinstance(a, Tensor) else a for a in leaves]
        ctx.is_tensor = [isinstance(a, Tensor) for a in leaves]

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        result, *tensors = ctx.saved_tensors
        saved = iter(tensors)
        leaves = [next(saved) if t else o for t, o in zip(ctx.is_tensor, ctx.others, strict=True)]
        if op.gradient is not None:
            args = pytree.tree_unflatten(leaves, ctx.spec)
            given = len(ctx.needs_input_grad)
            needed = (*ctx.needs_input_grad, *(False,) * (arguments - given))
            found = op.gradient(*grads, result, needed, *args)
            if found is not None:
                return found[:given]
        places = pytree.tree_unflatten(list(range(len(leaves))), ctx.spec)
        wanted = _wanted(places, ctx.needs_input_grad)
        with torch.enable_grad():
            for i in wanted:
                leaves[i] = leaves[i].detach().requires_grad_()
            found = torch.autograd.grad(
                op.reference(*pytree.tree_unflatten(leaves, ctx.spec)),
                [leaves[i] for i in wanted],
                grads,
                allow_unused=True,
            )
        by_place = dict(zip(wanted, found, strict=True))
        return tuple(
            [by_place.get(i) for i in place]
            if isinstance(need, list)
            else by_place[place]
            if need
            else None
            for place, need in zip(places, ctx.needs_input_grad, strict=False)
        )

    torch.library.register_autograd(
        f"gnnfx::{op.name}", backward, setup_context=setup_context, lib=_LIBRARY
    )
