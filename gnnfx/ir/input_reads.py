"""How a program reads an input: as integer codes, or in float32."""

from __future__ import annotations

from dataclasses import dataclass

from gnnfx.ir.program import Instr


@dataclass(frozen=True)
class InputReads:
    """The instructions that read one float input.

    quantizers: make its codes, and linear layers that do so as they read it.
    ranges: find the scale of such codes from the values of each call.
    scaled: quantizers of its rows times a factor a row, which depends on the graph.
    floats: all others that read values.
    """

    quantizers: tuple[Instr, ...]
    ranges: tuple[Instr, ...]
    scaled: tuple[Instr, ...]
    floats: tuple[Instr, ...]

    @staticmethod
    def of(value: Instr) -> InputReads:
        """Who reads `value`, an input of a program."""
        quantizers = [u for u in value.users if u.op == "quantize" and u.arg == value]
        scaled = [q for q in quantizers if q.args["row_scale"] is not None]
        layers = [u for u in value.users if u.op == "quantized_linear" and u.arg == value]
        plain = [q for q in (*quantizers, *layers) if q not in scaled]
        # One width each: a value that several instructions read is observed once.
        ranges = [q.args["scale"].arg for q in plain if q.args["scale"].op == "getitem"]
        sized = [u for u in value.users if u.op == "aten.sym_size.int"]
        ranged = [u for u in value.users if u.op == "choose_qparams"]
        known = [*quantizers, *ranged, *sized, *(u for u in layers if u.args["residual"] != value)]
        floats = [u for u in value.users if u not in known]
        return InputReads(tuple(plain), tuple(dict.fromkeys(ranges)), tuple(scaled), tuple(floats))

    @property
    def integer(self) -> tuple[Instr, ...]:
        """Quantizers of the input, those of its bare values first."""
        return (*self.quantizers, *self.scaled)

    @property
    def bits(self) -> int | None:
        """Width of the input's codes, or None if no integer op reads it."""
        return self.integer[0].args["bits"] if self.integer else None
