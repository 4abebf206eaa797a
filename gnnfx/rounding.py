"""Run one sample with and without rounding, and compare value by value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gnnfx.figures import DegreeRange, Figures, LayerNoise, Site
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.types import TupleType
from gnnfx.kernels.quantize import code_range
from gnnfx.noise import sqnr


def compare(observed: Program, simulated: Program, sample: Sequence[Any]) -> Figures:
    """What rounding changes on `sample`, the inputs of both programs.

    observed: the float program, with observers where `simulated` has fake-quantizers.
    """
    before, after = observed.values(*sample), simulated.values(*sample)
    rounded = {i.name: i for i in simulated.instrs}
    sites: dict[str, Site] = {}
    layers = []
    for reader, observers in _readers(observed):
        for operand, observe in observers:
            codes = rounded[reader.name].args[operand]
            while codes.op == "aten.view.default":
                codes = codes.arg
            if observe.name not in sites and before[observe.name].numel():
                sites[observe.name] = _site(observed, observe, reader, codes, before, after)
        wanted, got = before[reader.name], after[reader.name]
        layers.append(LayerNoise(reader.module, reader.name, sqnr([wanted], [got])))
    return Figures(tuple(sites.values()), tuple(layers))


def _readers(program: Program) -> Iterator[tuple[Instr, list[tuple[str, Instr]]]]:
    """Instructions that read observed values, with the arguments and observers."""
    for instr in program.instrs:
        found = []
        for name, value in instr.args.items() if instr.op not in ("param", "input") else ():
            while isinstance(value, Instr) and value.op == "aten.view.default":
                value = value.arg
            if isinstance(value, Instr) and value.op == "observe":
                found.append((name, value))
        if found and instr.op != "aten.view.default":
            yield instr, found


def _site(
    program: Program,
    observe: Instr,
    reader: Instr,
    codes: Instr,
    before: dict[str, Any],
    after: dict[str, Any],
) -> Site:
    x = before[observe.name].flatten(1) if observe.shape[1:] else before[observe.name][:, None]
    y = after[codes.name].view(x.shape)
    args = codes.args if codes.op == "fake_quantize" else codes.args["self"].args
    scale, zero_point = (after[args[part].name] for part in ("scale", "zero_point"))
    if codes.op != "fake_quantize":
        scale = scale / after[args["row_scale"].name][:, None]  # each row's own
    low, high = ((end - zero_point) * scale for end in code_range(args["bits"]))
    outside = (x < low - scale / 2) | (x > high + scale / 2)
    ranges = []
    for least, most, rows in _by_degree(program, observe, before, len(x)):
        part, rounded = x[rows], y[rows]
        ranges.append(
            DegreeRange(
                least,
                most,
                len(part),
                (float(part.min()), float(part.max())),
                (float(rounded.min()), float(rounded.max())),
                float(outside[rows].float().mean()),
            )
        )
    return Site(observe.args["name"], reader.module, args["bits"], tuple(ranges))


def _by_degree(
    program: Program, observe: Instr, values: dict[str, Any], count: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(least, most, rows) of in-degrees that share their highest binary digit."""
    degree = torch.zeros(count, dtype=torch.int64)
    for compress in program.find("compress"):
        assert isinstance(compress.type, TupleType)
        if compress.type.items[0].shape == (f"{observe.shape[0]} + 1",):  # type: ignore[union-attr]
            degree = values[compress.name][0].diff().long()
    digits = degree.clamp(min=0).double().add(0.5).log2().floor().long().clamp(min=-1)
    for digit in digits.unique().tolist():
        rows = digits == digit
        yield int(degree[rows].min()), int(degree[rows].max()), rows
