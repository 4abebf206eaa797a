"""What passes ask of instructions: constants, broadcast rows, single users."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import Domain

RESHAPES = frozenset(
    {
        "aten.view.default",
        "aten.reshape.default",
        "aten._unsafe_view.default",
        "aten.unsqueeze.default",
        "aten.squeeze.dim",
    }
)
_CONSTANT = {
    "aten.zeros.default": 0,
    "aten.new_zeros.default": 0,
    "aten.zeros_like.default": 0,
    "aten.ones.default": 1,
    "aten.new_ones.default": 1,
    "aten.ones_like.default": 1,
}
_FULL = {"aten.full.default", "aten.new_full.default", "aten.full_like.default"}


def constant_value(value: Any) -> float | None:
    """The number that every element of `value` equals, or None if that is not known."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Instr):
        return None
    while value.op in RESHAPES or value.op == "aten.expand.default":
        value = value.arg
    if value.op in _CONSTANT:
        return float(_CONSTANT[value.op])
    if value.op in _FULL:
        fill = value.args["fill_value"]
        return float(fill) if isinstance(fill, (int, float)) else None
    return None


def row_vector(value: Any) -> Instr | None:
    """The vector [R] that `value` [R, 1, ...] or [R, ...] repeats along its channels, or None."""
    if not isinstance(value, Instr) or not value.shape:
        return None
    rows = value.shape[0]
    while len(value.shape) > 1 or value.op == "aten.expand.default":
        widens = value.op == "aten.expand.default" and value.arg.shape[1:] in (
            (1,) * (len(value.shape) - 1),
            (),
        )
        if not (widens or value.op in RESHAPES) or not value.arg.shape:
            return None
        if value.op in RESHAPES and any(size != 1 for size in value.shape[1:]):
            return None
        value = value.arg
    return value if value.shape == (rows,) else None


def readers(value: Instr) -> list[Instr]:
    """What reads `value`, looked up through dropout."""
    return [r for u in value.users for r in (readers(u) if u.op == "dropout" else [u])]


def sole_user(instr: Instr) -> Instr | None:
    """The one instruction that uses `instr`, or None if there are more or fewer."""
    users = instr.users
    return users[0] if len(users) == 1 else None


def used_elsewhere(instr: Instr, user: Instr) -> str | None:
    """A reason if anything but `user` reads `instr`."""
    others = [u.name for u in instr.users if u.node is not user.node]
    return f"{instr.name} is also used by {', '.join(others)}" if others else None


def is_destination(index: Instr, rowptr: Instr) -> bool:
    """Whether `index` is the destination of each edge in the order of `rowptr`."""
    csr = rowptr.arg
    if index.op != "gather" or csr.op != "compress" or index.arg != csr.args["dst"]:
        return False
    perm = index.args["index"]
    return perm.op == "getitem" and perm.positional == [csr, 2]  # type: ignore[no-any-return]


def has_params(layer: Instr) -> bool:
    """Whether weight and bias of a linear layer are parameters."""
    bias = layer.args["bias"]
    return is_param(layer.args["weight"]) and (bias is None or is_param(bias))


def is_param(value: Any) -> bool:
    return isinstance(value, Instr) and value.op == "param"


def depends_on_params_alone(value: Any) -> bool:
    """Whether `value` is a parameter or computed from nothing but parameters and numbers."""
    if not isinstance(value, Instr):
        return False
    return is_param(value) or (
        bool(value.inputs) and all(map(depends_on_params_alone, value.inputs))
    )


def is_feature(instr: Instr) -> bool:
    """Whether a value carries features rather than graph structure or weights."""
    return instr.domain not in (Domain.STRUCTURE, Domain.PARAMETER, Domain.SCALAR)


def tensor_of(program: Program, value: Any) -> Tensor | None:
    """The program's tensor behind `value`, if it is one."""
    return program.tensor(value) if is_param(value) else None
