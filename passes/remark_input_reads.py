"""Say of each input that integer ops read what else reads it in float32.

The program stays as it is.  Where such an input is given as codes (`quantize_inputs`), the values
that these instructions read are dequantized codes.
"""

from __future__ import annotations

from gnnfx.ir.input_reads import InputReads
from gnnfx.ir.program import Program
from gnnfx.pass_manager import Pass, PassContext


class RemarkInputReads(Pass):
    """Name the instructions that read a quantized input in float32, too."""

    name = "remark-input-reads"
    needs = frozenset({"integer"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        for value in program.inputs:
            reads = InputReads.of(value)
            if not reads.integer:
                continue
            for instr in (*reads.floats, *reads.scaled):
                scaled = " times a factor a row" if instr in reads.scaled else ""
                ctx.missed(instr, f"reads input {value.name} in float32{scaled}")
        return program
