"""Mark the values that Degree-Quant rounds, where its own code rounds them.

    m: f32[E, 8] = aten.mul.Tensor(gather(x, src), w)
    a: f32[N, 8] = scatter(m, dst, n, 'sum')
    y: f32[N, 8] = aten.add.Tensor(a, b)
  becomes
    m: f32[E, 8] = observe(aten.mul.Tensor(gather(x, src), observe(w)), owner=src)
    a: f32[N, 8] = observe(scatter(m, dst, n, 'sum'))
    y: f32[N, 8] = observe(aten.add.Tensor(a, b))

and inputs and outputs of linear layers, attention vectors and attention logits.  Integer kernels
round less often; this placement exists to compare with the paper (Tailor et al., ICLR 2021, as its
code runs), and nothing executes it on integers.
"""

from __future__ import annotations

from gnnfx.ir.patterns import RESHAPES, is_feature, is_param, sole_user
from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class ObserveAsPaper(Pass):
    """Put `observe` behind every value that the paper rounds."""

    name = "observe-as-paper"
    needs = frozenset({"raised"})
    gives = frozenset({"observed"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        quantize = ctx.policy.quantize
        assert quantize is not None
        rewriter = Rewriter(program, self.name)
        owners: dict[Instr, Instr | None] = {}
        for instr in rewriter.program.instrs:
            for value, owner in _rounded(instr):
                owners.setdefault(value, owner)
        for value, owner in owners.items():
            if not any(i.op == "observe" for i in (value, *value.users)):
                _observe(rewriter, value, owner, quantize.activation_bits)
        return rewriter.finish()


def _rounded(instr: Instr) -> list[tuple[Instr, Instr | None]]:
    """The values that are rounded because of `instr`, and the node index of edge values."""
    match instr.op:
        case "aten.linear.default" if is_param(instr.args["weight"]):
            return [(instr.arg, None), (instr, None)]
        case "scatter" if is_feature(instr.arg):
            return _propagated(instr)
        case "edge_softmax" if is_feature(instr.arg):
            return _scored(instr)
    return []


def _propagated(scatter: Instr) -> list[tuple[Instr, Instr | None]]:
    """Message, aggregate and update of one layer, and the edge norm that scales its messages."""
    message = scatter.arg
    found: list[tuple[Instr, Instr | None]] = [(message, _source(message)), (scatter, None)]
    if message.op == "aten.mul.Tensor":
        operands = [message.args["self"], message.args["other"]]
        weights = [i for i in operands if isinstance(i, Instr) and not is_feature(i)]
        found += [(w, None) for w in weights if not is_param(w)]
    update = sole_user(scatter)
    while update is not None and update.op in (*RESHAPES, "aten.mean.dim"):
        update = sole_user(update)
    if update is not None and update.op == "aten.add.Tensor":
        found.append((update, None))
    return found


def _scored(softmax: Instr) -> list[tuple[Instr, Instr | None]]:
    """Attention logits before the leaky ReLU, and the attention vectors they come from."""
    logits = softmax.arg.arg if softmax.arg.op == "aten.leaky_relu.default" else softmax.arg
    vectors, wanted = [], [logits]
    while wanted:
        value = wanted.pop()
        if value.op == "aten.mul.Tensor":
            operands = [value.args["self"], value.args["other"]]
            vectors += [(v, None) for v in operands if is_param(v)]
        elif value.op in ("aten.add.Tensor", "gather", "aten.sum.dim_IntList"):
            wanted += [i for i in value.inputs if is_feature(i)]
    return [(logits, _source(logits)), *vectors]


def _source(value: Instr) -> Instr | None:
    """The index of the node that each row of an edge value is gathered from first."""
    wanted = [value]
    while wanted:
        instr = wanted.pop(0)
        if instr.op == "gather":
            return instr.args["index"]  # type: ignore[no-any-return]
        wanted += [i for i in instr.inputs if i.shape[:1] == value.shape[:1]]
    return None


def _observe(rewriter: Rewriter, value: Instr, owner: Instr | None, bits: int) -> None:
    """Let whatever reads the numbers of `value` read them rounded."""
    readers = [u for u in value.users if u.op != "aten.sym_size.int"]
    after = Instr(value.node.next)
    while after.op in ("input", "param"):
        after = Instr(after.node.next)
    observe = rewriter.insert(
        after, "observe", value, value.name, owner=owner, bits=bits, like=value
    )
    for reader in readers:
        reader.node.replace_input_with(value.node, observe.node)
