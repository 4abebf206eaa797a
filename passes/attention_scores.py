"""What the logits of an attention are made of: GAT's, GATv2's and dot-product scores.

    GAT      leaky_relu(gather(a_src, src) [+ gather(a_dst, dst)] [+ a_edge])
    GATv2    sum(att * leaky_relu(gather(x, src) + gather(x_dst, dst) [+ edge]), last dim)
    dot      sum(gather(query, dst) * (gather(key, src) [+ edge]), last dim) times numbers

Read by `fuse_attention` from edges in the order of their destinations, and for values with an edge
term from edges as they were given: gather(value, src) + edge has a row for each edge in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnnfx.ir.patterns import constant_value, is_destination, is_param
from gnnfx.ir.program import Instr, Program

Scores = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Frame:
    """The edges of a softmax: logits, the rows that are summed, and how ends of edges are read.

    edge: what is added to the rows, an edge's own row, or None.
    rowptr: of edges sorted by destination; None if they are not, and `dst` is their destination.
    """

    logits: Instr
    value: Instr
    edge: Instr | None
    src: Instr
    rowptr: Instr | None
    dst: Instr | None = None
    num_rows: Any = None

    def source(self, value: Instr) -> Instr | None:
        """x of gather(x, src), or None."""
        return value.arg if value.op == "gather" and value.args["index"] == self.src else None

    def target(self, value: Instr) -> Instr | None:
        """x of gather(x, dst), or None."""
        if value.op != "gather":
            return None
        index = value.args["index"]
        found = index == self.dst if self.rowptr is None else is_destination(index, self.rowptr)
        return value.arg if found else None


def unsorted_frame(aggregate: Instr) -> Frame | None:
    """The frame of an aggregate of softmax-weighted messages gather(value, src) + edge, or None."""
    args, messages = aggregate.args, aggregate.arg
    csr = args["rowptr"].arg
    bare = args["weight"] is None and args["reduce"] == "sum" and args["bias"] is None
    if not bare or messages.op != "aten.mul.Tensor" or csr.op != "compress":
        return None
    if args["src"].positional != [csr, 2]:
        return None
    left, right = messages.args["self"], messages.args["other"]
    for rows, scale in ((left, right), (right, left)):
        if not isinstance(rows, Instr) or not isinstance(scale, Instr):
            return None
        if rows.shape != messages.shape or (weight := softmax_of(scale)) is None:
            continue
        if weight.args["index"] != csr.args["dst"] or weight.shape != messages.shape[:-1]:
            return None
        terms = _terms(rows)
        gathers = [t for t in terms if t.op == "gather"]
        if len(terms) != 2 or not gathers:
            return None
        gather = gathers[0]
        edge = terms[1] if gather is terms[0] else terms[0]
        if edge.shape != rows.shape or gather.shape != rows.shape:
            return None
        index, dst, count = gather.args["index"], csr.args["dst"], weight.args["num_rows"]
        return Frame(weight.arg, gather.arg, edge, index, None, dst, count)
    return None


def softmax_of(scale: Instr) -> Instr | None:
    """The edge_softmax that a factor per edge and head is."""
    if scale.op in ("aten.unsqueeze.default", "aten.view.default") and scale.shape[-1] == 1:
        scale = scale.arg
    return scale if scale.op == "edge_softmax" else None


def match_scores(frame: Frame, program: Program) -> Scores | str:
    """The attention op and its arguments, or why there is none."""
    logits = frame.logits
    if logits.op == "aten.leaky_relu.default" and frame.edge is None:
        return _gat(frame)
    product, scale = _unscaled(logits, program)
    if product.op != "aten.sum.dim_IntList" or product.arg.op != "aten.mul.Tensor":
        return f"logits come from {logits.op}, which is no known score"
    if product.args["dim"] != [-1] or product.args["keepdim"]:
        return "the score is not a dot product over the channels of a head"
    left, right = product.arg.args["self"], product.arg.args["other"]
    if not isinstance(left, Instr) or not isinstance(right, Instr):
        return "the score is not a dot product of two values"
    if scale == 1.0 and frame.edge is None and (is_param(left) or is_param(right)):
        return _gatv2(frame, *((right, left) if is_param(left) else (left, right)))
    return _dot(frame, left, right, scale)


def _gat(frame: Frame) -> Scores | str:
    a_src, a_dst, a_edge = None, None, None
    for term in _terms(frame.logits.arg):
        if a_src is None and (found := frame.source(term)) is not None:
            a_src = found
        elif a_dst is None and (found := frame.target(term)) is not None:
            a_dst = found
        elif a_edge is None and term.shape == frame.logits.shape:
            a_edge = term
        else:
            return "the score has more than a source, a destination and an edge term"
    if a_src is None or (a_dst is None and a_edge is None):
        return "the score lacks a source term, or a destination or edge term"
    if a_edge is not None and len(a_edge.shape) == 1:
        return "a single head has a score of its own for each edge"
    slope = frame.logits.args["negative_slope"]
    return "attend_gat", (frame.value, a_src, a_dst, frame.rowptr, frame.src, a_edge, slope)


def _gatv2(frame: Frame, hidden: Instr, att: Instr) -> Scores | str:
    if hidden.op != "aten.leaky_relu.default" or len(frame.logits.shape) != 2:
        return "the score is not a dot product of a leaky ReLU with a parameter for each head"
    x_dst, edge, terms = None, None, _terms(hidden.arg)
    for term in terms:
        if frame.source(term) == frame.value:
            continue
        if x_dst is None and (found := frame.target(term)) is not None:
            x_dst = found
        elif edge is None and _is_of_edges(term, frame):
            edge = term
        else:
            return "the score has other terms than x_src[src] + x_dst[dst] + edge"
    if x_dst is None or len(terms) != (2 if edge is None else 3):
        return "the score has other terms than x_src[src] + x_dst[dst] + edge"
    listed = (None, None) if edge is None else (edge.arg, edge.args["index"])
    slope = hidden.args["negative_slope"]
    rows = frame.value, x_dst, att, frame.rowptr, frame.src
    return "attend_gatv2", (*rows, *listed, None, None, slope)


def _is_of_edges(term: Instr, frame: Frame) -> bool:
    """Whether `term` has a row for each edge, gathered in the order of destinations."""
    if term.op != "gather" or term.args["index"].dtype != frame.src.dtype:
        return False
    return bool(term.arg.shape == (frame.src.shape[0], *frame.value.shape[1:]))


def _dot(frame: Frame, left: Instr, right: Instr, scale: float) -> Scores | str:
    for query_row, key_row in ((left, right), (right, left)):
        query, keys = frame.target(query_row), _terms(key_row)
        if query is None:
            continue
        edges = [t for t in keys if frame.edge is not None and t == frame.edge]
        sources = [found for t in keys if (found := frame.source(t)) is not None]
        if len(sources) != 1 or len(keys) != (1 if frame.edge is None else 2):
            return "keys have other terms than key[src]"
        if frame.edge is not None and not edges:
            return "keys and values have different edge terms"
        if query.shape[1:] != frame.value.shape[1:] or sources[0].shape != frame.value.shape:
            return "queries, keys and values differ in shape"
        rows = query, sources[0], frame.value
        return "attend_dot", (*rows, frame.rowptr, frame.src, frame.edge, None, None, None, scale)
    return "the score is not a dot product of a destination's row with a source's"


def _unscaled(logits: Instr, program: Program) -> tuple[Instr, float]:
    """What is scaled by numbers, and by how much."""
    scale = 1.0
    while logits.op in ("aten.mul.Tensor", "aten.div.Tensor", "aten.mul.Scalar"):
        inner, other = logits.args["self"], logits.args["other"]
        if is_param(inner) and logits.op == "aten.mul.Tensor":
            inner, other = other, inner
        number = _number(other, program)
        if number is None or not isinstance(inner, Instr) or inner.shape != logits.shape:
            break
        if logits.op == "aten.div.Tensor" and number == 0:
            break
        scale = scale / number if logits.op == "aten.div.Tensor" else scale * number
        logits = inner
    return logits, scale


def _number(value: Any, program: Program) -> float | None:
    """The number that `value`, a constant or a parameter of one number, holds."""
    if is_param(value) and all(size == 1 for size in value.shape):
        return float(program.tensor(value))
    return constant_value(value)


def _terms(value: Instr) -> list[Instr]:
    """The summands of nested additions."""
    if value.op == "aten.add.Tensor" and value.args["alpha"] == 1:
        left, right = value.args["self"], value.args["other"]
        if isinstance(left, Instr) and isinstance(right, Instr):
            return [*_terms(left), *_terms(right)]
    return [value]
