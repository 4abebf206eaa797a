"""Expressions of sizes over named axes, such as `N`, `D0 + N`, `2*((E//2))`, `Max(1, N)`.

They come from torch's symbolic shapes, in the notation that SymPy prints, and are
evaluated node by node, never handed to Python: text may come from a file.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

# The name of an axis: `N`, or `N[paper]` for the nodes of a type.
AXIS = r"[A-Z]\w*(?:\[\w+\])?"
_MOST_BITS = 63


def _max(*values: Any) -> Any:
    return functools.reduce(torch.sym_max, values)


def _min(*values: Any) -> Any:
    return functools.reduce(torch.sym_min, values)


def _power(base: Any, exponent: Any) -> Any:
    small = not isinstance(base, int) or abs(base) < 2**_MOST_BITS
    if not isinstance(exponent, int) or exponent > _MOST_BITS or not small:
        raise ValueError(f"a power as high as {exponent} is not a size")
    return base**exponent


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Max": _max,
    "Min": _min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Eq": operator.eq,
    "Ne": operator.ne,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "ToFloat": torch.sym_float,
    "CeilToInt": math.ceil,
    "FloorToInt": math.floor,
    "TruncToInt": torch.sym_int,
}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}


def evaluate(text: str, axes: Mapping[str, Any]) -> Any:
    """What an expression comes to, given the size (int or SymInt) of each axis in it.

    Raises ValueError for anything that is not an expression over these axes.
    """
    # What stands in the brackets may be a word of Python's, so a name without them is parsed.
    plain = {_plain(name): size for name, size in axes.items()}
    text = re.sub(rf"\b{AXIS}(?!\w|\()", lambda match: _plain(match[0]), text)
    return _evaluate(ast.parse(text, mode="eval").body, plain)


def _plain(axis: str) -> str:
    return axis.replace("[", "_of_").removesuffix("]")


def _evaluate(tree: ast.AST, axes: Mapping[str, Any]) -> Any:
    match tree:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in axes:
            return axes[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(operand, axes))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, axes), _evaluate(right, axes))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, axes), _evaluate(right, axes))
        case ast.Call(func=ast.Name(id="Piecewise"), args=[*cases, ast.Tuple(elts=[last, _])]):
            value = _evaluate(last, axes)
            for case in reversed(cases):
                then, condition = (_evaluate(part, axes) for part in getattr(case, "elts", ()))
                value = torch.sym_ite(condition, then, value)
            return value
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(a, axes) for a in args))
    raise ValueError(f"{ast.unparse(tree)!r} is not a size")
