"""Multiply before rows are gathered and joined: of each node once, not once an edge.

    i: f32[E, 8] = gather(x, dst)
    j: f32[E, 8] = gather(x, src)
    d: f32[E, 8] = aten.sub.Tensor(j, i)
    c: f32[E, 16] = aten.cat.default([i, d], -1)
    y: f32[E, 4] = aten.linear.default(c, w, b)           w = [w1, w2]
  becomes
    p: f32[N, 4] = aten.linear.default(x, w1 - w2, b)
    q: f32[N, 4] = aten.linear.default(x, w2)
    y: f32[E, 4] = aten.add.Tensor(gather(p, dst), gather(q, src))

and a linear layer over [h, s * h, t * h] with row scales s and t becomes three over h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gnnfx.ir.patterns import is_feature, is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext
from gnnfx.passes.row_counts import RowCounts

# A core multiplies and adds about this many floats in the time in which it moves a byte.
_FLOPS_PER_BYTE = 8


@dataclass(frozen=True)
class _Part:
    """Channels `offset` to `offset + width` of a joined matrix: sign * scale * source[index]."""

    source: Instr
    offset: int
    index: Instr | None = None
    scale: Instr | None = None
    sign: int = 1

    @property
    def width(self) -> int:
        return int(self.source.shape[1])

    @property
    def rows(self) -> tuple[Instr, Instr | None, Instr | None]:
        """What parts that share one product have in common."""
        return self.source, self.index, self.scale


class DistributeLinear(Pass):
    """Replace a linear layer over joined rows by a sum of linear layers where that is faster."""

    name = "distribute-linear"
    needs = frozenset({"raised"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        counts = RowCounts(program, ctx)
        for linear in rewriter.program.find("aten.linear.default"):
            if not _fits(linear):
                continue
            parts = _parts(linear.arg, 0)
            if parts == [_Part(linear.arg, 0)]:
                continue
            if (reason := _slower(linear, parts, counts)) is not None:
                ctx.missed(linear, reason)
                continue
            rewriter.replace(linear, _distributed(rewriter, linear, parts))
            ctx.did(linear, f"multiplies {len({p.rows for p in parts})} parts before joining them")
        return rewriter.finish()


def _fits(linear: Instr) -> bool:
    matrix = len(linear.shape) == 2 and linear.dtype is torch.float32
    return matrix and is_param(linear.args["weight"]) and isinstance(linear.arg.shape[1], int)


def _parts(value: Instr, offset: int) -> list[_Part]:
    """The parts that `value` [R, K], which begins at channel `offset`, is the sum of.

    What holds neither gathered nor scaled rows stays as it is.
    """
    opened = _opened(value, offset)
    whole = all(part.index is None and part.scale is None for part in opened)
    return [_Part(value, offset)] if whole else opened


def _opened(value: Instr, offset: int) -> list[_Part]:
    args = value.args
    if value.op == "aten.cat.default" and args["dim"] in (-1, 1):
        parts = []
        for joined in value.arg:
            parts += _parts(joined, offset)
            offset += joined.shape[1]
        return parts
    if value.op in ("aten.add.Tensor", "aten.sub.Tensor") and _is_plain(value):
        sign = 1 if value.op == "aten.add.Tensor" else -1
        others = (replace(p, sign=sign * p.sign) for p in _parts(args["other"], offset))
        return [*_parts(args["self"], offset), *others]
    if value.op == "gather" and is_feature(value.arg):
        return [_Part(value.arg, offset, index=args["index"])]
    if (scaled := _scaled(value)) is not None:
        rows, scale = scaled
        inner = _parts(rows, offset)
        if all(part.scale is None for part in inner):
            return [replace(part, scale=scale) for part in inner]
    return []


def _is_plain(value: Instr) -> bool:
    """Whether a sum or difference is one of two matrices of its own shape."""
    operands = [value.args["self"], value.args["other"]]
    same = all(isinstance(o, Instr) and o.shape == value.shape for o in operands)
    return same and value.args["alpha"] == 1


def _scaled(value: Instr) -> tuple[Instr, Instr] | None:
    """(rows, scale) of rows [R, K] times a column [R, 1]."""
    if value.op != "aten.mul.Tensor":
        return None
    left, right = value.args["self"], value.args["other"]
    for rows, scale in ((left, right), (right, left)):
        column = isinstance(scale, Instr) and scale.shape == (value.shape[0], 1)
        if column and isinstance(rows, Instr) and rows.shape == value.shape:
            return rows, scale
    return None


def _slower(linear: Instr, parts: list[_Part], counts: RowCounts) -> str | None:
    """Why products of the parts take longer than that of the whole, or None."""
    outputs, inputs = linear.args["weight"].shape
    rows = counts.of(linear)
    whole = rows * inputs * (2 * outputs / _FLOPS_PER_BYTE + 8)
    distributed = 0.0
    for source, index, scale in {part.rows: None for part in parts}:
        product = counts.of(source) * source.shape[1] * (2 * outputs / _FLOPS_PER_BYTE + 4)
        joined = rows * outputs * 4 * (1 if index is not None or scale is not None else 0)
        distributed += product + joined
    if distributed < whole:
        return None
    return f"multiplying {len(parts)} parts of its input moves more than joining them first"


def _distributed(rewriter: Rewriter, linear: Instr, parts: list[_Part]) -> Instr:
    weight = rewriter.program.tensor(linear.args["weight"]).double()
    grouped: dict[Any, Tensor] = {}
    for part in parts:
        columns = part.sign * weight[:, part.offset : part.offset + part.width]
        grouped[part.rows] = grouped[part.rows] + columns if part.rows in grouped else columns
    bias, biased = linear.args["bias"], min(grouped, key=_bias_rank)
    summed: dict[Any, Instr] = {}  # by what follows: rows that are gathered alike add up before
    for number, (rows, columns) in enumerate(grouped.items()):
        source, index, scale = rows
        name = f"{linear.args['weight'].param}.{number}"
        args = [source, rewriter.param(linear, name, columns.float().contiguous())]
        if bias is not None and rows == biased and scale is None:
            args.append(bias)
            bias = None
        value = rewriter.insert(linear, "aten.linear.default", *args)
        _add(rewriter, linear, summed, (index, scale, value.shape[0]), value)
    whole: dict[None, Instr] = {}
    for (index, scale, _), value in summed.items():
        if index is not None:
            value = rewriter.insert(linear, "gather", value, index)
        if scale is not None:
            value = rewriter.insert(linear, "aten.mul.Tensor", value, scale)
        _add(rewriter, linear, whole, None, value)
    total = whole[None]
    return total if bias is None else rewriter.insert(linear, "aten.add.Tensor", total, bias)


def _add(rewriter: Rewriter, place: Instr, sums: dict[Any, Instr], key: Any, value: Instr) -> None:
    """Add `value` to the sum of that key."""
    if key in sums:
        value = rewriter.insert(place, "aten.add.Tensor", sums[key], value)
    sums[key] = value


def _bias_rank(rows: tuple[Instr, Instr | None, Instr | None]) -> int:
    """Where a bias costs least: with destinations, then other nodes, and last with scaled rows."""
    _, index, scale = rows
    if scale is not None:
        return 3
    if index is None:
        return 2
    scatters = any(u.op == "scatter" and u.args["index"] == index for u in index.users)
    return 0 if scatters else 1
