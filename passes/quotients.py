"""Quotients of values over the edges of a node that mean more: a mean, a softmax.

Read by `raise_message_passing` once gathers and scatters have their names.
"""

from __future__ import annotations

from typing import Any

from gnnfx.ir.patterns import constant_value, row_vector
from gnnfx.ir.program import Instr

Raised = tuple[str, tuple[Any, ...]]
# Next to a sum that holds exp(0) = 1, this is less than float32 resolves.
_LARGEST_EPSILON = 1e-9
# A maximum that starts here is the maximum of its logits, unless they are lower still.
_LOWEST_START = -1e6


def mean(div: Instr) -> Raised | None:
    """scatter(m, i, n, sum) / clamp(scatter(1, i, n, sum), 1)."""
    total, count = div.args["self"], row_vector(div.args["other"])
    if not isinstance(total, Instr) or total.op != "scatter" or count is None:
        return None
    clamps = count.op in ("aten.clamp.default", "aten.clamp_min.default")
    if not clamps or count.args["min"] != 1 or count.args.get("max") is not None:
        return None
    count = count.arg
    if count.op != "scatter" or constant_value(count.arg) != 1.0:
        return None
    same = all(total.args[k] == count.args[k] for k in ("index", "num_rows", "reduce"))
    if not same or total.args["reduce"] != "sum":
        return None
    return "scatter", (total.arg, total.args["index"], total.args["num_rows"], "mean")


def softmax(div: Instr) -> Raised | None:
    """exp(l - s[i]) / sum of the same over i, with an epsilon before or after the sum is gathered.

    Any shift s drops out of the quotient; beside an epsilon it must be the maximum of l.
    """
    weights, found = div.args["self"], _total(div.args["other"])
    if not _is(weights, "aten.exp.default") or found is None:
        return None
    total, index, epsilon = found
    if total.arg != weights or total.args["index"] != index or total.args["reduce"] != "sum":
        return None
    logits, shift = weights.arg, None
    if _is(logits, "aten.sub.Tensor") and _is(logits.args["other"], "gather"):
        read = logits.args["other"]
        if read.args["index"] != index or logits.args["alpha"] != 1:
            return None
        logits, shift = logits.args["self"], read.arg
    if not isinstance(logits, Instr) or logits.type != weights.type:
        return None
    if epsilon and not (epsilon <= _LARGEST_EPSILON and _is_maximum(shift, logits, index)):
        return None
    return "edge_softmax", (logits, index, total.args["num_rows"])


def _total(value: Any) -> tuple[Instr, Instr, float] | None:
    """(scatter, index, epsilon) of a sum that is read by each edge, or None."""
    value, outside = _without_epsilon(value)
    if not _is(value, "gather"):
        return None
    total, inside = _without_epsilon(value.arg)
    return (total, value.args["index"], outside + inside) if _is(total, "scatter") else None


def _without_epsilon(value: Any) -> tuple[Any, float]:
    added = value.args["other"] if _is(value, "aten.add.Tensor") else None
    if isinstance(added, (int, float)) and added >= 0 and value.args["alpha"] == 1:
        return value.arg, float(added)
    return value, 0.0


def _is_maximum(value: Any, logits: Instr, index: Instr) -> bool:
    """Whether `value` is the largest of `logits` for each entry of `index`."""
    if _is(value, "scatter"):
        over, by = value.arg, value.args["index"]
        largest = value.args["reduce"] == "max"
    elif _is(value, "aten.scatter_reduce.two"):
        over, by = value.args["src"], row_vector(value.args["index"])
        start = constant_value(value.arg)
        low = start is not None and start <= _LOWEST_START
        largest = low and value.args["reduce"] == "amax" and value.args["dim"] == 0
    else:
        return False
    # The maximum drops out of the quotient, so that its gradient does not matter.
    over = over.arg if _is(over, "aten.detach.default") else over
    return bool(largest and over == logits and by == index)


def _is(value: Any, op: str) -> bool:
    return isinstance(value, Instr) and value.op == op
