"""A module's program for inputs that are given as codes: same tensors, same structure part.

  y: f32[N, 8] = f(quantize(x, s, z, 8), s, z)
  u: f32[N, 8] = quantized_linear(x, s, z, ...)
  w: f32[N, 8] = g(x)
becomes
  v: f32[N, 4] = dequantize(x_codes, x_scale, x_zero_point, 4, 8)
  y: f32[N, 8] = f(x_codes, x_scale, x_zero_point)
  u: f32[N, 8] = quantized_linear(x_codes, x_scale, x_zero_point, ...)
  w: f32[N, 8] = g(v)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gnnfx.backend.direct import direct_forward
from gnnfx.backend.input_codes import InputCodes
from gnnfx.errors import InputError
from gnnfx.ir.input_reads import InputReads
from gnnfx.ir.program import Instr
from gnnfx.ir.rewriter import drop_dead

# A forward function for any tensors, which takes the module first, and one for plain ones alone.
Forwards = tuple[Callable[..., Any], Callable[..., Any]]


class CodedInputs:
    """Reads inputs that are given as codes, for one module.

    feature: the feature part of the module, whose tensors are read in each call.
    channels: of each of its inputs that is a tensor, by position.
    """

    def __init__(self, feature: fx.GraphModule, channels: Mapping[int, int]) -> None:
        self._feature, self._channels = feature, channels
        inputs = [Instr(n) for n in feature.graph.nodes if n.op == "placeholder"]
        self._names = [value.name for value in inputs]
        reads = enumerate(map(InputReads.of, inputs))
        self._reads = {position: found for position, found in reads if found.integer}
        self._forwards: dict[tuple[int, ...], Forwards] = {}
        self._made_with: dict[int, tuple[float, int] | None] = {}
        if self._reads:  # the usual form of a call; torch.compile cannot make it while it traces
            self._make_forwards(tuple(self._reads))

    @property
    def positions(self) -> list[int]:
        """Which inputs of the program can be codes."""
        return list(self._reads)

    def quantize(self, position: int, leaf: str, x: Tensor) -> InputCodes:
        """The codes of `x`, as an input of the program, which users call `leaf`.

        The scale is the one that the program reads with; where it has none, as it scales rows
        first or finds the scale in each call, one that just covers `x`.
        """
        reads = self._reads[position]
        bits = reads.integer[0].args["bits"]
        if not bool(x.isfinite().all()):
            raise InputError(f"argument {leaf!r} holds NaN or Inf; expected finite values")
        x = x.detach().contiguous()
        if (known := _static_qparams(self._feature, reads)) is not None:
            scale, zero_point = (t.clone() for t in known)
        else:
            symmetric = bool(reads.ranges) and reads.ranges[0].args["symmetric"]
            scale, zero_point = torch.ops.gnnfx.choose_qparams(x, bits, symmetric)
        codes = torch.ops.gnnfx.quantize(x, scale, zero_point, bits)
        return InputCodes.of(codes, scale, zero_point, x.shape[-1], bits)

    def expand(self, leaves: Sequence[Any]) -> tuple[list[Any], Forwards | None]:
        """Inputs with the parts of codes in their places, and what takes them; None without codes.

        Raises InputError for codes that were made with another scale than this module's.
        """
        coded = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, InputCodes))
        if not coded:
            return list(leaves), None
        if not torch.compiler.is_compiling():
            for i in coded:
                self._check_scale(i, leaves[i])
        if coded not in self._forwards:
            if torch.compiler.is_compiling():
                names = [self._names[i] for i in coded]
                raise InputError(
                    f"codes as {names} alone are new to this module; expected one call with them "
                    f"before torch.compile"
                )
            self._make_forwards(coded)
        parts: list[Any] = []
        for leaf in leaves:
            whole = not isinstance(leaf, InputCodes)
            parts += [leaf] if whole else [leaf.codes, leaf.scale, leaf.zero_point]
        return parts, self._forwards[coded]

    def forget(self) -> None:
        """Learn the module's scales anew: its tensors may be others."""
        self._made_with.clear()

    def _make_forwards(self, coded: tuple[int, ...]) -> None:
        channels = {self._names[i]: self._channels[i] for i in coded}
        self._forwards[coded] = _coded_forwards(self._feature, channels)

    def _check_scale(self, position: int, codes: InputCodes) -> None:
        if position not in self._made_with:
            known = _static_qparams(self._feature, self._reads[position])
            self._made_with[position] = known and (float(known[0]), int(known[1]))
        expected, name = self._made_with[position], self._names[position]
        if expected is not None and codes.made_with != expected:
            raise InputError(
                f"the codes given as {name!r} have scale and zero point {codes.made_with}, this "
                f"module's are {expected}; make them with this module's quantize_inputs"
            )


def _static_qparams(feature: fx.GraphModule, reads: InputReads) -> tuple[Tensor, Tensor] | None:
    """The calibrated scale and zero point of an input's bare values, if there are any."""
    if not reads.quantizers or reads.ranges:
        return None
    args = reads.quantizers[0].args
    names = (str(args[part].node.target) for part in ("scale", "zero_point"))
    scale, zero_point = (feature.get_buffer(name) for name in names)
    return scale, zero_point


def _coded_forwards(feature: fx.GraphModule, channels: Mapping[str, int]) -> Forwards:
    """Forward functions of `feature` that take codes, scale and zero point for some inputs.

    channels: of each of these inputs, by name.  The functions run on `feature` itself, so that
    tensors are those of today.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in feature.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in channels:
            _read_codes(graph, node, channels[node.name])
    return type(fx.GraphModule(feature, graph)).forward, direct_forward(feature, graph)


def _read_codes(graph: fx.Graph, codes: fx.Node, channels: int) -> None:
    """Let the input `codes` be codes, followed by two more inputs, for all that read it."""
    reads = InputReads.of(Instr(codes))
    bits = reads.integer[0].args["bits"]
    with graph.inserting_after(codes):
        scale = graph.placeholder(f"{codes.name}_scale")
    with graph.inserting_after(scale):
        zero_point = graph.placeholder(f"{codes.name}_zero_point")
    values = None
    for node in list(codes.users):
        by_value = Instr(node) in (*reads.floats, *reads.scaled)
        if not by_value and (Instr(node).op != "choose_qparams" or Instr(node) in reads.ranges):
            continue
        if values is None:
            first = next(n for n in graph.nodes if n.op != "placeholder")
            with graph.inserting_before(first):
                values = graph.call_function(
                    torch.ops.gnnfx.dequantize.default,
                    (codes, scale, zero_point, channels, bits),
                )
        node.replace_input_with(codes, values)
    for quantizer in reads.quantizers:
        node, args = quantizer.node, quantizer.args
        if quantizer.op == "quantize":
            node.replace_all_uses_with(codes)
            graph.erase_node(node)
        elif node.args:  # a layer, which may have the values for a residual, too
            node.update_arg(0, codes)
        else:
            node.update_kwarg("x", codes)
        # Nothing but readers of these codes uses their scale: each value has one of its own.
        args["scale"].node.replace_all_uses_with(scale)
        args["zero_point"].node.replace_all_uses_with(zero_point)
    drop_dead(graph)
