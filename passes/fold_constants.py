"""Compute once, at compile time, what depends on parameters alone.

  e: f32[1] = param('eps')
  f: f32[1] = aten.add.Tensor(e, 1)
becomes
  f: f32[1] = param('eps.add')
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnnfx.ir.infer import effects
from gnnfx.ir.patterns import is_param
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class FoldConstants(Pass):
    """Replace parameter-only expressions by their value."""

    name = "fold-constants"

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        folded: dict[Instr, Instr] = {}
        for instr in rewriter.program.instrs:
            sources = [folded.get(i, i) for i in instr.inputs]
            if instr.node.op != "call_function" or not sources or not all(map(is_param, sources)):
                continue
            if not isinstance(instr.fake, Tensor) or instr.random or effects(instr.node):
                continue
            value = _evaluate(rewriter.program, instr, folded)
            name = f"{sources[0].param}.{instr.op.split('.')[-2] if '.' in instr.op else instr.op}"
            folded[instr] = rewriter.param(instr, name, value)
            rewriter.replace(instr, folded[instr])
        return rewriter.finish()


def _evaluate(program: Program, instr: Instr, folded: dict[Instr, Instr]) -> Tensor:
    args, kwargs = torch.fx.node.map_arg(
        (instr.node.args, instr.node.kwargs),
        lambda n: program.tensors[folded.get(Instr(n), Instr(n)).param],
    )
    with torch.no_grad():
        value = instr.node.target(*args, **kwargs)  # type: ignore[operator]
    return value.detach().clone().contiguous()  # type: ignore[no-any-return]
