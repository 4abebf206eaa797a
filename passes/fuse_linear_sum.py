"""Add up integer linear layers a block of rows at a time.

    a: f32[N, 4] = quantized_linear(q, s, z, w, t, 8)
    y: f32[N, 4] = quantized_linear(r, u, v, k, l, 8, bias, a, 'relu')
  becomes
    y: f32[N, 4] = quantized_linear_sum([q, r], [s, u], [z, v], [w, k], [t, l], [8, 8], [8, 8],
                                        [8, 8], bias, None, 'relu')

so that no sum is written to memory for the next layer to read.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Numerics, Pass, PassContext

_SUM = "quantized_linear_sum"
_TERMS = ("x", "scale", "zero_point", "weight", "weight_scale", "channels", "bits", "weight_bits")
_FINISHED = ("bias", "residual", "activation", "out_scale", "out_zero_point", "out_bits")


class FuseLinearSum(Pass):
    """Absorb a linear layer whose result is the residual of another."""

    name = "fuse-linear-sum"
    needs = frozenset({"integer"})
    numerics = Numerics.REORDERED

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for instr in rewriter.program.find("quantized_linear"):
            args, added = instr.args, instr.args["residual"]
            if args["row_scale"] is not None or not _is_bare(added, instr):
                continue
            terms = {name: [*_listed(added, name), args[name]] for name in _TERMS}
            finished = {name: args[name] for name in _FINISHED}
            finished["residual"] = added.args["residual"]
            finished["bias"] = args["bias"] or added.args["bias"]
            fused = rewriter.insert(instr, _SUM, **terms, **finished, like=instr)
            rewriter.replace(instr, fused)
            ctx.did(added, f"its result is added up by {fused.name} of {instr.module or '(top)'}")
        return rewriter.finish()


def _is_bare(added: Any, user: Instr) -> bool:
    """Whether `added` is a layer, or a sum of some, that `user` alone reads and can absorb."""
    if not isinstance(added, Instr) or added.op not in ("quantized_linear", _SUM):
        return False
    args = added.args
    if args["bias"] is not None and user.args["bias"] is not None:
        return False
    bare = args["activation"] == "none" and args["out_scale"] is None
    return bare and args.get("row_scale") is None and sole_user(added) == user


def _listed(added: Instr, name: str) -> list[Any]:
    value = added.args[name]
    return value if added.op == _SUM else [value]
