"""Replace self-loops while edges are sorted, without a copy of the edge list.

    k: bool[E] = aten.ne.Tensor(src, dst)
    e: i64[2, D] = aten.index.Tensor(edge_index, [None, k])
    f: i64[2, D + N] = aten.cat.default([e, loops], 1)      # loops: 0..N - 1, twice
    c: (i32[N + 1], i32[D + N], i32[D + N]) = compress(f[0], f[1], n)
  becomes
    c: (i32[N + 1], i32[D1]) = compress_self_loops(src, dst, n)

where nothing else reads the new edge list or the permutation.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.program import Instr, Program
from gnnfx.ir.rewriter import Rewriter
from gnnfx.pass_manager import Pass, PassContext


class FuseSelfLoops(Pass):
    """Let the sort leave out self-loops and add one a node."""

    name = "fuse-self-loops"
    needs = frozenset({"csr"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        rewriter = Rewriter(program, self.name)
        for compress in rewriter.program.find("compress"):
            src, dst, rows = compress.positional
            if (edges := _with_self_loops(src, dst, rows)) is None:
                continue
            if (reason := _refusal(compress, src.arg)) is not None:
                ctx.missed(compress, reason)
                continue
            pair = [rewriter.insert(compress, *select, like=compress) for select in edges]
            fused = rewriter.insert(compress, "compress_self_loops", *pair, rows, like=compress)
            for user in compress.users:
                item = rewriter.insert(compress, "getitem", fused, user.positional[1], like=user)
                rewriter.replace(user, item)
        return rewriter.finish()


def _with_self_loops(src: Instr, dst: Instr, rows: Any) -> list[tuple[Any, ...]] | None:
    """How to select sources and destinations of the edge list in which self-loops are replaced."""
    cat, at_src = _row(src)
    if cat is None or (cat, 1 - at_src) != _row(dst) or cat.op != "aten.cat.default":
        return None
    match cat.args["tensors"], cat.args["dim"] % 2:
        case [Instr() as index, Instr() as loops], 1:
            pass
        case _:
            return None
    if index.op != "aten.index.Tensor" or not _is_loops(loops, rows):
        return None
    match index.args["indices"]:
        case [None, Instr() as kept] if kept.op == "aten.ne.Tensor":
            rows_compared = {_row(kept.args["self"]), _row(kept.args["other"])}
        case _:
            return None
    if rows_compared != {(index.arg, 0), (index.arg, 1)}:
        return None
    return [("aten.select.int", index.arg, 0, at) for at in (at_src, 1 - at_src)]


def _row(value: Any) -> tuple[Instr | None, int]:
    """(matrix [2, E], which row of it) of a value, or (None, 0)."""
    selects = isinstance(value, Instr) and value.op == "aten.select.int"
    if not selects or value.args["dim"] != 0 or value.arg.shape[0] != 2:
        return None, 0
    return value.arg, value.args["index"] % 2


def _is_loops(value: Instr, rows: Any) -> bool:
    """Whether `value` [2, N] holds 0..rows - 1 in both of its rows."""
    if value.op not in ("aten.repeat.default", "aten.expand.default") or value.shape[0] != 2:
        return False
    ids = value.arg
    while ids.op in ("aten.view.default", "aten.unsqueeze.default") and ids.shape[0] == 1:
        ids = ids.arg
    if not ids.op.startswith("aten.arange.") or len(ids.shape) != 1:
        return False
    once = value.op == "aten.expand.default" or value.args["repeats"][1:] == [1]
    args = ids.args
    counts_up = args.get("start", 0) == 0 and args.get("step", 1) == 1
    return once and counts_up and bool(args["end"] == rows)


def _refusal(compress: Instr, cat: Instr) -> str | None:
    for user in compress.users:
        if user.op != "getitem" or (user.positional[1] == 2 and user.users):
            return "the order of its edges is needed, too"
    selects = [user for user in cat.users if _row(user)[0] == cat]
    readers = [user for user in cat.users if user not in selects]
    readers += [user for select in selects for user in select.users]
    others = [r.name for r in readers if r != compress]
    return f"its edge list is also read by {', '.join(others)}" if others else None
