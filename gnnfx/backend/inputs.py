"""The inputs of a module: bound by name, checked against the example, and read as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gnnfx.backend.call import Call
from gnnfx.backend.input_codes import InputCodes
from gnnfx.backend.split import Split
from gnnfx.errors import InputError
from gnnfx.frontend.signature import flatten
from gnnfx.ir.input_reads import InputReads
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import IntType, TensorType, is_axis, wrong_size

_ANOTHER = "optimize the model with an example of each way to call it"


def _brief(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


class Inputs:
    """What the inputs of one program must be, and which of them describe the graph."""

    def __init__(self, call: Call, program: Program, parts: Split) -> None:
        names = [i.name for i in program.inputs]
        self._call = call
        self._checks = tuple(
            Check(leaf, i.type, InputReads.of(i).bits)
            for leaf, i in zip(call.leaves, program.inputs, strict=True)
        )
        self._types = tuple(i.type for i in program.inputs)
        self._by_position = _by_position(call)
        self._equal, self._derived = _relations(self._types)
        self._bounds = _index_bounds(program, parts.tensors)
        self._tensors = tuple(names.index(n) for n in parts.tensors)
        sizes: list[tuple[int, int | None]] = [(names.index(n), dim) for n, dim in parts.sizes]
        self._used_sizes = len(sizes)
        # The structure of a graph is good for features of as many rows as its indices were
        # compared with, so these counts are part of what a graph is known by.
        counts = dict.fromkeys(b.count for b in self._bounds if isinstance(b.count, tuple))
        self._sizes = (*sizes, *(count for count in counts if count not in sizes))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The program's inputs; raises InputError for arguments that the example had otherwise."""
        plain = self._by_position and not kwargs and len(args) == len(self._checks)
        if plain and all(type(a) is Tensor and a.layout is torch.strided for a in args):
            leaves = [check(a) for check, a in zip(self._checks, args, strict=True)]
        else:
            leaves = self._leaves(args, kwargs)
        for (i, dim), (j, other) in self._equal:
            if leaves[i].shape[dim] != leaves[j].shape[other]:
                raise InputError(
                    f"argument {self._checks[j].leaf!r} must be as long as "
                    f"{self._checks[i].leaf!r}, {leaves[i].shape[dim]} rows, got shape "
                    f"{tuple(leaves[j].shape)}"
                )
        if self._derived and (wrong := wrong_size(self._types, leaves)) is not None:
            position, size, found = wrong
            raise InputError(
                f"argument {self._checks[position].leaf!r} must be {self._types[position]}, "
                f"got {found} where {size} was expected"
            )
        return leaves

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The checked leaves of arguments of any form."""
        call = self._call
        inputs = call.signature.bind(args, kwargs)
        if tuple(inputs) != call.arguments:
            raise InputError(
                f"the example was called with arguments {list(call.arguments)}, this call has "
                f"{list(inputs)}; {_ANOTHER}"
            )
        given = flatten(inputs)
        missing = [name for name in (*call.leaves, *call.constants) if name not in given]
        if missing:
            raise InputError(f"the inputs lack {missing}, which the example had; {_ANOTHER}")
        known = {*call.leaves, *call.constants}
        if extra := [name for name in given if name not in known]:
            raise InputError(f"the inputs have {extra}, which the example lacked; {_ANOTHER}")
        for name, expected in call.constants.items():
            value = given[name]
            if isinstance(value, Tensor) != isinstance(expected, Tensor) or (
                not isinstance(value, Tensor) and value != expected
            ):
                raise InputError(
                    f"argument {name!r} was {expected!r} in the example, got {_brief(value)}; "
                    f"{_ANOTHER}"
                )
        return [check(given[check.leaf]) for check in self._checks]

    @property
    def channels(self) -> dict[int, int]:
        """The last size of each input that is a tensor with as many channels in every call."""
        tensors = ((i, t) for i, t in enumerate(self._types) if isinstance(t, TensorType))
        last = {i: t.shape[-1] for i, t in tensors if t.shape}
        return {i: size for i, size in last.items() if isinstance(size, int)}

    def check(self, leaf: str, value: Any) -> Any:
        """A value for one leaf, or InputError."""
        return self._checks[self._call.leaves.index(leaf)](value)

    def graph(self, leaves: Sequence[Any]) -> tuple[list[Tensor], list[int]]:
        """The tensors and sizes that a graph is known by."""
        sizes = [leaves[i] if dim is None else leaves[i].shape[dim] for i, dim in self._sizes]
        return [leaves[i] for i in self._tensors], sizes

    def compute(
        self, structure: Callable[..., Any], tensors: Sequence[Tensor], sizes: Sequence[int]
    ) -> list[Tensor]:
        """Run the structure part on a graph whose indices name rows, or raise InputError."""
        self._verify_indices(tensors, sizes)
        with torch.no_grad():
            try:
                return list(structure(*tensors, *sizes[: self._used_sizes]))
            except IndexError as error:
                raise InputError(f"an index of the graph is out of range: {error}") from error

    def compute_traced(
        self, structure: Callable[..., Any], tensors: Sequence[Tensor], sizes: Sequence[Any]
    ) -> list[Tensor]:
        """As `compute`, with the checks as ops that stay in what is traced."""
        for bound in self._bounds:
            tensor = tensors[bound.index] if bound.row is None else tensors[bound.index][bound.row]
            count = bound.count
            rows = sizes[self._sizes.index(count)] if isinstance(count, tuple) else count
            leaf = self._checks[self._tensors[bound.index]].leaf
            message = f"argument {leaf!r} holds a node that names no row"
            torch._assert_async(((tensor >= 0) & (tensor < rows)).all(), message)
        return list(structure(*tensors, *sizes[: self._used_sizes]))

    def needs_gradient(self, tensors: Sequence[Tensor]) -> str | None:
        """The first input of the graph that requires a gradient, by name."""
        for position, tensor in zip(self._tensors, tensors, strict=True):
            if tensor.requires_grad:
                return self._checks[position].leaf
        return None

    def _verify_indices(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
        """Eager PyG would read or write outside its tensors for an index that names no row."""
        for bound in self._bounds:
            tensor = tensors[bound.index] if bound.row is None else tensors[bound.index][bound.row]
            if tensor.numel() == 0:
                continue
            low, high = (int(v) for v in torch.aminmax(tensor))
            count, of = bound.count, ""
            if isinstance(count, tuple):
                leaf = self._checks[count[0]].leaf
                of = f", {leaf!r}" if count[1] is None else f", the number of rows of {leaf!r}"
                count = sizes[self._sizes.index(count)]
            if low < 0 or high >= count:
                raise InputError(
                    f"argument {self._checks[self._tensors[bound.index]].leaf!r} holds node "
                    f"{low if low < 0 else high}; expected 0 <= node < {count}{of}"
                )


class Check:
    """What one input must be: the dtype and the channel counts of the example.

    bits: width of the codes that it may be given as, or None if it is read in float32 alone.
    """

    def __init__(self, leaf: str, type_: Any, bits: int | None = None) -> None:
        self.leaf = leaf
        self.type = type_
        self.bits = bits
        tensor = isinstance(type_, TensorType)
        self.dtype = type_.dtype if tensor else None
        self.fixed = (
            [(d, size) for d, size in enumerate(type_.shape) if isinstance(size, int)]
            if tensor
            else []
        )

    def __call__(self, value: Any) -> Any:
        if self.dtype is None:
            if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
                raise InputError(f"argument {self.leaf!r} must be an int, got {value!r}")
            return value
        if isinstance(value, InputCodes):
            self._check_codes(value)
        elif not isinstance(value, Tensor):
            raise InputError(
                f"argument {self.leaf!r} must be {self.type}, got {value!r}; {_ANOTHER}"
            )
        elif value.dtype != self.dtype:
            if value.is_floating_point() or self.dtype.is_floating_point:
                raise InputError(
                    f"argument {self.leaf!r} must be {self.type}, got dtype {value.dtype}"
                )
            value = value.to(self.dtype)
        shape = value.shape
        if len(shape) == len(self.type.shape) and all([shape[d] == s for d, s in self.fixed]):
            return value
        raise InputError(f"argument {self.leaf!r} must be {self.type}, got shape {tuple(shape)}")

    def _check_codes(self, codes: InputCodes) -> None:
        if self.bits is None:
            raise InputError(
                f"argument {self.leaf!r} is read in {self.dtype} alone; expected a tensor, "
                f"got {codes!r}"
            )
        if codes.bits != self.bits:
            raise InputError(
                f"argument {self.leaf!r} is read as codes of {self.bits} bits, got {codes!r}; "
                f"make them with this module's quantize_inputs"
            )


def _by_position(call: Call) -> bool:
    """Whether a call may give all leaves by position, and nothing else."""
    names = call.signature.names[: call.signature.positional]
    count = len(call.leaves)
    return call.arguments == call.leaves == names[:count] and not call.constants


Place = tuple[int, int]


def _relations(types: Sequence[Any]) -> tuple[tuple[tuple[Place, Place], ...], bool]:
    """Dimensions of inputs that must be equal, and whether any follows from others otherwise."""
    first: dict[str, Place] = {}
    equal: list[tuple[Place, Place]] = []
    derived = False
    for position, type_ in enumerate(types):
        for dim, size in enumerate(type_.shape if isinstance(type_, TensorType) else ()):
            if is_axis(size):
                place = first.setdefault(size, (position, dim))
                if place != (position, dim):
                    equal.append((place, (position, dim)))
            derived = derived or (isinstance(size, str) and not is_axis(size))
        if isinstance(type_, IntType):
            derived = derived or not is_axis(type_.value) or str(type_.value) in first
    return tuple(equal), derived


@dataclass(frozen=True)
class _Bound:
    """Entries of one index input must name one of so many rows.

    index: position of the index among the structure part's tensors.
    row: which of its rows, or None for all.
    count: how many rows there are: a number, or the input (and its dimension) that tells.
    """

    index: int
    row: int | None
    count: int | tuple[int, int | None]


# Ops whose results are entries of their operands, or numbers that the program made itself.
_SUBSETS = frozenset(
    {
        "aten.cat.default",
        "aten.index.Tensor",
        "aten.index_select.default",
        "aten.slice.Tensor",
        "aten._to_copy.default",
        "aten.clone.default",
        "gather",
    }
)


def _index_bounds(program: Program, tensors: tuple[str, ...]) -> tuple[_Bound, ...]:
    """What the entries of each index input must stay below, read off what they index."""
    lengths: dict[Any, tuple[int, int | None]] = {}
    for position, instr in enumerate(program.inputs):
        if instr.shape:
            lengths.setdefault(instr.shape[0], (position, 0))
    for position, instr in enumerate(program.inputs):
        if isinstance(instr.type, IntType):
            lengths.setdefault(instr.type.value, (position, None))
    bounds: dict[tuple[str, int | None], _Bound] = {}
    for instr in program.instrs:
        for index, size in _indexed(instr):
            for name, row in _sources(index):
                if name in tensors and (size in lengths or isinstance(size, int)):
                    count = size if isinstance(size, int) else lengths[size]
                    bounds.setdefault((name, row), _Bound(tensors.index(name), row, count))
    return tuple(_joined(bounds, program))


def _joined(bounds: dict[tuple[str, int | None], _Bound], program: Program) -> Iterator[_Bound]:
    """The bounds, with one for both rows of an index [2, E] where they are the same."""
    pairs = {i.name for i in program.inputs if len(i.shape) == 2 and i.shape[0] == 2}
    for (name, row), bound in bounds.items():
        other = None if row is None else bounds.get((name, 1 - row))
        if name not in pairs or other is None or other.count != bound.count:
            yield bound
        elif row == 0:
            yield replace(bound, row=None)


def _indexed(instr: Instr) -> Iterator[tuple[Instr, Any]]:
    """Pairs of an index that `instr` reads with and the number of rows it reads from."""
    if instr.definition is None:
        return
    args = instr.args
    if instr.op == "gather":
        yield args["index"], (instr.arg.shape or (None,))[0]
    elif instr.op in ("compress", "compress_self_loops", "scatter"):
        count = args["num_rows" if instr.op == "scatter" else "num_dst"]
        if isinstance(count, Instr) and isinstance(count.type, IntType):
            count = count.type.value
        if isinstance(count, (int, str)):
            yield args["index" if instr.op == "scatter" else "dst"], count
    elif "src" in args:
        read = args[next(k for k in ("x", "x_src", "value") if k in args)]
        several = isinstance(read, list)
        pairs = zip(args["src"], read, strict=True) if several else [(args["src"], read)]
        yield from ((index, rows.shape[0]) for index, rows in pairs)


def _sources(index: Instr) -> Iterator[tuple[str, int | None]]:
    """The inputs, and which row of them, whose entries `index` is made of."""
    wanted: list[tuple[Instr, int | None]] = [(index, None)]
    seen: set[tuple[Instr, int | None]] = set()
    while wanted:
        instr, row = wanted.pop()
        if (instr, row) in seen or instr.dtype is None or instr.dtype.is_floating_point:
            continue
        seen.add((instr, row))
        if instr.op == "input":
            yield instr.name, row
        elif instr.op == "aten.select.int" and instr.args["dim"] == 0 and row is None:
            wanted.append((instr.arg, instr.args["index"]))
        elif (
            instr.op == "getitem"
            and instr.arg.op in ("compress", "compress_self_loops")
            and instr.positional[1] == 1
        ):
            wanted.append((instr.arg.args["src"], row))
        elif instr.op == "getitem" and instr.arg.op == "split_edges":
            wanted.append((instr.arg.arg, row))
        elif instr.op == "aten.cat.default":
            wanted.extend((part, row) for part in instr.arg)
        elif instr.op in _SUBSETS and isinstance(instr.arg, Instr):
            wanted.append((instr.arg, row))
