"""The typed record of a value: dtype, shape with named axes, domain, codes, origin."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from gnnfx.ir.size import AXIS, evaluate

Dim = int | str


def axis_names(dim: Dim) -> list[str]:
    """The named axes in the expression of a size, each once and in order."""
    return sorted(set(re.findall(rf"\b{AXIS}(?!\w|\()", str(dim))) - {"True"})


def is_axis(dim: Dim) -> TypeGuard[str]:
    """Whether a size is one named axis, such as `N`, `E1` or `N[paper]`."""
    return re.fullmatch(AXIS, str(dim)) is not None


def size_of(dim: Dim, axes: Mapping[str, Any]) -> Any:
    """What the expression of a size comes to, given the size of each axis in it."""
    return dim if isinstance(dim, int) else evaluate(dim, axes)


class Domain(enum.Enum):
    """What the rows of a value stand for."""

    NODE = "node"
    EDGE = "edge"
    GRAPH = "graph"
    STRUCTURE = "structure"
    PARAMETER = "parameter"
    SCALAR = "scalar"
    OTHER = "other"


SHORT_OF = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
DTYPE_OF = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
DTYPE_OF |= {short: dtype for dtype, short in SHORT_OF.items()}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; a dimension is a number or an expression over named axes."""

    dtype: torch.dtype
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        short = SHORT_OF.get(self.dtype, str(self.dtype).removeprefix("torch."))
        return f"{short}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class IntType:
    """A size known when the program runs, as an expression over named axes."""

    value: Dim

    def __str__(self) -> str:
        return f"int[{self.value}]"


@dataclass(frozen=True, slots=True)
class FloatType:
    """A float known when the program runs."""

    def __str__(self) -> str:
        return "float"


@dataclass(frozen=True, slots=True)
class TupleType:
    """The result of an op with several results."""

    items: tuple[ValueType, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


ValueType = TensorType | IntType | FloatType | TupleType | None


@dataclass(frozen=True, slots=True)
class Codes:
    """How integer codes map to real numbers: value = scale * (code - zero_point)."""

    bits: int
    scale: str
    zero_point: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of one value.

    module: path of the user's module the value came from, '' at the top.
    origin: name of the pass that made the instruction.
    """

    type: ValueType
    domain: Domain
    module: str = ""
    origin: str = "trace"
    codes: Codes | None = None


def wrong_size(expected: Sequence[ValueType], given: Sequence[Any]) -> tuple[int, Dim, int] | None:
    """The first value whose size contradicts its type or another value: (position, size, given).

    A named axis is as long everywhere as where it stands alone; expressions follow from that.
    """
    sizes: list[tuple[int, Dim, int]] = []
    for position, (type_, value) in enumerate(zip(expected, given, strict=True)):
        if isinstance(type_, TensorType):
            if len(type_.shape) != value.dim():
                return position, len(type_.shape), value.dim()
            sizes.extend((position, e, g) for e, g in zip(type_.shape, value.shape, strict=True))
        elif isinstance(type_, IntType):
            sizes.append((position, type_.value, value))
    axes = {e: g for _, e, g in reversed(sizes) if is_axis(e)}
    for position, size, found in sizes:
        if isinstance(size, int) or size in axes:
            wanted = size if isinstance(size, int) else axes[size]
        elif all(name in axes for name in axis_names(size)):
            wanted = size_of(size, axes)
        else:
            continue
        if wanted != found:
            return position, size, found
    return None
