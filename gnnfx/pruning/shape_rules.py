"""How axes map through ops that only move, join, split or repeat them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from gnnfx.ir.program import Instr
from gnnfx.pruning.labels import Channels, Labels, Layout, Unfollowed
from gnnfx.pruning.rules import Flow, dims_of, rule


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def _reshape(flow: Flow, instr: Instr) -> Layout:
    x, source, target = flow.of(instr.arg), instr.arg.shape, instr.shape
    axes: list[Labels | None] = [None] * len(target)
    zero = [False] * len(target)
    for olds, news in axis_groups(source, target):
        labels = [a for d in olds if (a := x.axes[d]) is not None]
        dead = all(x.zero[d] for d in olds)
        if not labels:
            continue
        if len(labels) < len(olds):
            raise Unfollowed("joins channels and rows")
        if len(news) == 1 and len(olds) == 1:
            axes[news[0]], zero[news[0]] = labels[0], dead
        elif len(news) == 1:
            axes[news[0]], zero[news[0]] = flatten(flow.channels, labels), dead
        else:
            factors = unflatten(flow.channels, labels[0], [int(target[d]) for d in news])
            for d, axis in zip(news, factors, strict=True):
                axes[d], zero[d] = axis, dead
    return Layout(tuple(axes), tuple(zero))


def axis_groups(source: Sequence[Any], target: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """The axes of fixed size > 1 of both shapes, matched: (one, one), (one, many) or (many, one).

    Raises Unfollowed for any other reshape, as of [N, 4] to [4 * N].
    """
    olds = [d for d, size in enumerate(source) if size != 1]
    news = [d for d, size in enumerate(target) if size != 1]
    groups = []
    while olds and news:
        left, right = [olds.pop(0)], [news.pop(0)]
        a, b = source[left[0]], target[right[0]]
        if isinstance(a, str) or isinstance(b, str):
            if a != b:
                raise Unfollowed(f"reshapes {list(source)} to {list(target)}")
            continue
        while a != b:
            side, size, dims = (left, source, olds) if a < b else (right, target, news)
            if not dims or isinstance(size[dims[0]], str):
                raise Unfollowed(f"reshapes {list(source)} to {list(target)}")
            side.append(dims.pop(0))
            a, b = (a * size[side[-1]], b) if side is left else (a, b * size[side[-1]])
        if len(left) > 1 and len(right) > 1:
            raise Unfollowed(f"reshapes {list(source)} to {list(target)}")
        groups.append((left, right))
    if olds or news:
        raise Unfollowed(f"reshapes {list(source)} to {list(target)}")
    return groups


def unflatten(channels: Channels, flat: Labels, sizes: Sequence[int]) -> list[Labels]:
    """Split an axis into several; its labels become products of theirs."""
    factors = [channels.fresh(size) for size in sizes]
    channels.products.extend(zip(flat, itertools.product(*factors), strict=True))
    return factors


def flatten(channels: Channels, factors: Sequence[Labels]) -> Labels:
    """Join several axes into one, whose labels are products of theirs."""
    combinations = list(itertools.product(*factors))
    flat = channels.fresh(len(combinations))
    channels.products.extend(zip(flat, combinations, strict=True))
    return flat


@rule("aten.unsqueeze.default")
def _unsqueeze(flow: Flow, instr: Instr) -> Layout:
    x = flow.of(instr.arg)
    dim = instr.args["dim"] % (len(x.axes) + 1)
    axes, zero = list(x.axes), list(x.zero)
    axes.insert(dim, None)
    zero.insert(dim, False)
    return Layout(tuple(axes), tuple(zero))


@rule("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default")
def _squeeze(flow: Flow, instr: Instr) -> Layout:
    x = flow.of(instr.arg)
    dims = dims_of(instr.args.get("dim"), len(x.axes))
    flow.freeze(x, dims, "is squeezed away if only one channel is left")
    return x.without([d for d in dims if instr.arg.shape[d] == 1])


@rule("aten.t.default", "aten.transpose.int", "aten.permute.default")
def _permute(flow: Flow, instr: Instr) -> Layout:
    x, args = flow.of(instr.arg), instr.args
    order = list(range(len(x.axes)))
    if "dims" in args:
        order = dims_of(args["dims"], len(order))
    elif order:
        a, b = args.get("dim0", 0) % len(order), args.get("dim1", -1) % len(order)
        order[a], order[b] = order[b], order[a]
    return x.order(order)


@rule("aten.expand.default")
def _expand(flow: Flow, instr: Instr) -> Layout:
    x, new = flow.of(instr.arg), len(instr.shape) - len(instr.arg.shape)
    wide = flow.fresh(instr.shape, zero=False)
    axes, zero = list(wide.axes), list(wide.zero)
    for d, labels in enumerate(x.axes):
        if labels is not None:
            axes[new + d], zero[new + d] = labels, x.zero[d]
        elif instr.arg.shape[d] != 1 or instr.shape[new + d] == 1:
            axes[new + d] = None
    return Layout(tuple(axes), tuple(zero))


@rule("aten.repeat.default")
def _repeat(flow: Flow, instr: Instr) -> Layout:
    x, repeats = flow.of(instr.arg), instr.args["repeats"]
    if len(repeats) != len(x.axes):
        raise Unfollowed("repeats along new axes")
    axes: list[Labels | None] = []
    for labels, count in zip(x.axes, repeats, strict=True):
        if labels is not None and isinstance(count, int):
            axes.append(labels * count)
        elif isinstance(count, int) and count == 1:
            axes.append(labels)
        else:
            raise Unfollowed("repeats an axis of one channel")
    return Layout(tuple(axes), x.zero)


@rule("aten.cat.default")
def _cat(flow: Flow, instr: Instr) -> Layout:
    parts = [flow.of(t) for t in instr.args["tensors"]]
    dim = instr.args["dim"] % len(parts[0].axes)
    axes = flow.broadcast([p.replace(dim, None, False) for p in parts], len(parts[0].axes))
    if isinstance(instr.shape[dim], int):
        axes[dim] = _end_to_end(flow, instr, dim)
    else:
        for part in parts:
            flow.freeze(part, [dim], "is joined to rows")
    zero = [all(p.zero[d] for p in parts) for d in range(len(axes))]
    return Layout(tuple(axes), tuple(zero))


def _end_to_end(flow: Flow, instr: Instr, dim: int) -> Labels:
    """The labels of the operands of `instr` along `dim`, one after the other."""
    joined: list[int] = []
    for tensor in instr.args["tensors"]:
        # One channel is never all there is to remove: it gets a label that nothing shares.
        alone = flow.channels.fresh(1)
        flow.channels.keep(alone, "is the only channel of its value")
        joined.extend(flow.of(tensor).axes[dim] or alone * tensor.shape[dim])
    return tuple(joined)


@rule("aten.block_diag.default")
def _block_diag(flow: Flow, instr: Instr) -> Layout:
    blocks = [flow.of(t) for t in instr.args["tensors"]]
    if any(len(block.axes) != 2 for block in blocks):
        raise Unfollowed("blocks that are no matrices")
    axes = tuple(_end_to_end(flow, instr, dim) for dim in range(2))
    return Layout(axes, tuple(all(block.zero[dim] for block in blocks) for dim in range(2)))


@rule("aten.stack.default")
def _stack(flow: Flow, instr: Instr) -> Layout:
    parts = [flow.of(t) for t in instr.args["tensors"]]
    rank = len(parts[0].axes)
    dim = instr.args["dim"] % (rank + 1)
    axes = flow.broadcast(parts, rank)
    zero = [all(p.zero[d] for p in parts) for d in range(rank)]
    new = flow.channels.fresh(len(parts)) if len(parts) > 1 else None
    flow.channels.keep(new or (), "numbers the values that are stacked")
    return Layout((*axes[:dim], new, *axes[dim:]), (*zero[:dim], False, *zero[dim:]))


def split_sizes(split: Instr) -> list[int]:
    """The widths of the pieces of a `split`, which names them all or the one of most of them."""
    args = split.args
    sizes = args["split_sizes"] if "split_sizes" in args else args["split_size"]
    if isinstance(sizes, int):
        total = int(split.arg.shape[split.args["dim"]])
        return [min(sizes, total - start) for start in range(0, total, sizes)]
    return list(sizes)


@rule("aten.split_with_sizes.default", "aten.split.Tensor")
def _split(flow: Flow, instr: Instr) -> list[Layout]:
    x = flow.of(instr.arg)
    dim = instr.args["dim"] % len(x.axes)
    if (labels := x.axes[dim]) is None:
        raise Unfollowed("splits rows")
    sizes = split_sizes(instr)
    ends = list(itertools.accumulate(sizes))
    pieces = [labels[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return [x.replace(dim, piece, x.zero[dim]) for piece in pieces]


@rule("aten.slice.Tensor")
def _slice(flow: Flow, instr: Instr) -> Layout:
    x, args = flow.of(instr.arg), instr.args
    dim = args["dim"] % len(x.axes)
    if (labels := x.axes[dim]) is None:
        return x
    if not all(isinstance(args[n], int | None) for n in ("start", "end", "step")):
        raise Unfollowed("slices channels by a size")
    if args["step"] != 1:
        flow.freeze(x, [dim], "is sliced with a step")
    return x.replace(dim, labels[args["start"] : args["end"] : args["step"]], x.zero[dim])


@rule("aten.select.int")
def _select(flow: Flow, instr: Instr) -> Layout:
    x, args = flow.of(instr.arg), instr.args
    dim = args["dim"] % len(x.axes)
    if (labels := x.axes[dim]) is not None:
        if not isinstance(args["index"], int):
            raise Unfollowed("reads a channel whose number is computed")
        flow.channels.keep((labels[args["index"]],), "is read by its number")
    return x.without([dim])


@rule("aten.zeros.default", "aten.new_zeros.default")
def _zeros(flow: Flow, instr: Instr) -> Layout:
    return flow.fresh(instr.shape, zero=True)


@rule("aten.ones.default", "aten.new_ones.default", "aten.full.default", "aten.new_full.default",
      "aten.empty.memory_format", "aten.new_empty.default")  # fmt: skip
def _constant(flow: Flow, instr: Instr) -> Layout:
    return flow.fresh(instr.shape, zero=False)
