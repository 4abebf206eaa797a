"""Decide branches on data-dependent sizes as the example does, and remember what was assumed.

A model may branch on a number that only the data tells (how many graphs, whether types are
sorted).  `torch.export` would refuse; here the branch that the example takes is captured, and the
assumption stays in the program as a check, so that a graph for which it does not hold is noticed.
The numbers come from running the model once: data-dependent results appear there in the order in
which capturing asks for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.traceback import get_current_meta
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_UNIQUE = (
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.unique_consecutive.default,
)
_NEW_LENGTH = (_aten.repeat_interleave.Tensor, _aten.masked_select.default, _aten.bincount.default)


_CREATE = ("create_unbacked_symint", "create_unbacked_symbool")
_ASSUME = "guard_or_defer_runtime_assert"
# Where torch works out what an op gives.
_OPS = (
    "torch._subclasses",
    "torch._prims",
    "torch._refs",
    "torch._decomp",
    "torch._meta_registrations",
    "torch._higher_order_ops",
)


class _NumberLog(TorchDispatchMode):
    """Every number that an eager run reads from the values of its tensors, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: list[int] = []
        self._seen: dict[tuple[str, int], Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is _aten._local_scalar_dense.default:
            if not isinstance(out, float):
                self._note("item", args[0], int(out))
        elif func is _aten.nonzero.default:
            self._note("nonzero", args[0], out.shape[0])
        elif func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
            for index in args[1]:
                if isinstance(index, Tensor) and index.dtype == torch.bool:
                    self._note("nonzero", index, int(index.sum()))
        elif func in _UNIQUE:
            self._note("unique", args[0], out[0].shape[0])
        elif func in _NEW_LENGTH:
            self.numbers.append(out.shape[0])
        return out

    def _note(self, kind: str, of: Tensor, number: int) -> None:
        """FakeTensors make one symbol per tensor asked, however often it is asked."""
        if (kind, id(of)) not in self._seen:
            self._seen[kind, id(of)] = of
            self.numbers.append(number)


def numbers_of(run: Callable[[], Any]) -> list[int]:
    """The data-dependent numbers of one eager run."""
    log = _NumberLog()
    with log:
        run()
    return log.numbers


class Assumptions:
    """Branches of the captured code that were decided by an example, as text of conditions."""

    def __init__(self) -> None:
        self.by_model: set[str] = set()
        self.truths: set[sympy.Symbol] = set()

    def matter(self, condition: sympy.Basic) -> bool:
        """Whether a graph might break `condition` and be served wrongly.

        Torch asks of every size whether it is 0 or 1, to choose between code that is equally right;
        only where the model itself asks does the answer matter.
        """
        if str(condition) in self.by_model or condition.free_symbols & self.truths:
            return True
        symbols, numbers = condition.free_symbols, condition.atoms(sympy.Integer)
        return not (len(symbols) <= 1 and all(-1 <= int(n) <= 2 for n in numbers))


@contextmanager
def decided_by(numbers: list[int]) -> Iterator[Assumptions]:
    """Give data-dependent symbols the values of an example while a model is captured."""
    assumptions = Assumptions()
    order = iter(numbers)
    value_of: dict[sympy.Symbol, int] = {}
    asked: dict[int, int] = {}
    truths = assumptions.truths
    originals = {name: getattr(ShapeEnv, name) for name in (*_CREATE, _ASSUME)}
    assume = originals[_ASSUME]

    def with_value(create: Callable[..., Any]) -> Callable[..., Any]:
        def create_with_value(env: ShapeEnv, *args: Any, **kwargs: Any) -> Any:
            made = create(env, *args, **kwargs)
            (symbol,) = made.node.expr.free_symbols
            if isinstance(made, torch.SymBool):
                truths.add(symbol)
            bindings = get_current_meta().get("unbacked_bindings")
            if bindings:  # a second pass over captured code: the symbol stands for a known one
                nth = asked[id(bindings)] = asked.get(id(bindings), -1) + 1
                value = value_of.get(list(bindings)[min(nth, len(bindings) - 1)])
            else:
                value = next(order, None)
            if value is not None:
                value_of[symbol] = value
                env.set_real_tensor_prop_unbacked_vals(symbol, value)
            return made

        return create_with_value

    def noted(env: ShapeEnv, condition: Any, message: str, *args: Any, **kwargs: Any) -> Any:
        if message.startswith("propagate_real_tensors"):
            if _fixes_size(condition, truths):
                # Torch would put the number in the place of the symbol and forget the condition.
                raise UnsupportedBranch(f"the captured code depends on {condition}")
            if _asked_by_model():
                assumptions.by_model.add(str(condition))
        return assume(env, condition, message, *args, **kwargs)

    for name in _CREATE:
        setattr(ShapeEnv, name, with_value(originals[name]))
    setattr(ShapeEnv, _ASSUME, noted)
    try:
        yield assumptions
    finally:
        for name, original in originals.items():
            setattr(ShapeEnv, name, original)


class UnsupportedBranch(RuntimeError):
    """The model's code depends on the very number of something that only the data tells."""


def _fixes_size(condition: Any, truths: set[sympy.Symbol]) -> bool:
    """Whether a condition gives a data-dependent number one value; a truth has but two."""
    if not isinstance(condition, sympy.Eq) or condition.free_symbols <= truths:
        return False
    return bool(condition.lhs.is_number or condition.rhs.is_number)


def _asked_by_model() -> bool:
    """Whether the model turned a condition into a Python value, rather than an op it called."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_OPS):
            return False
        if not module.startswith(("torch.", "gnnfx.")):
            return True
    return False
