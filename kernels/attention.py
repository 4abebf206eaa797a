"""What the attention ops share: softmax-weighted sums of rows, finished as rows of all heads.

    y[i, h] = sum over the edges e into i of softmax(logit)[e, h] * value[src[e], h]

The softmax is that of `gnnfx.kernels.softmax`; the ops differ in their logits.  The result is
[N, H * C], or the mean over heads [N, C], and is finished with `gnnfx.kernels.epilogue`.  The
quantized forms read int8 codes as scale * (q - zero_point) and are otherwise the same, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gnnfx.ir.op import Cost
from gnnfx.kernels.aggregate import aggregate_reference
from gnnfx.kernels.csr import num_bytes, sample_graphs, sample_large_graph
from gnnfx.kernels.epilogue import check_epilogue, empty_result, finish, result_bytes
from gnnfx.kernels.quantize import sample_qparams
from gnnfx.kernels.softmax import reference as segment_softmax


def check_rows(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless `x` is rows of heads of this dtype."""
    if x.dtype != dtype or x.dim() != 3:
        raise ValueError(f"{name} must be {dtype} [rows, H, C], got {x.dtype} {tuple(x.shape)}")


def check_floats(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `x` is float32 of this shape."""
    if x.dtype != torch.float32 or tuple(x.shape) != shape:
        got = f"{x.dtype} {tuple(x.shape)}"
        raise ValueError(f"{name} must be float32 {shape}, got {got}")


def weigh(
    value: Tensor,
    logits: Tensor,
    rowptr: Tensor,
    src: Tensor,
    edge: Tensor | None = None,
) -> Tensor:
    """Sums [N, H, C] of value[src] + edge, `edge` [E, H, C], by the softmax of logits [E, H]."""
    alpha = segment_softmax(logits, rowptr)
    if edge is None:
        return aggregate_reference(value, rowptr, src, alpha)
    places = torch.arange(src.shape[0], device=src.device, dtype=src.dtype)
    return aggregate_reference(value.index_select(0, src) + edge, rowptr, places, alpha)


def finish_heads(
    rows: Tensor,
    mean_heads: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """The epilogue on rows [N, H, C]; `bias` and `residual` are as wide as the result."""
    total = rows.mean(1) if mean_heads else rows.flatten(1)
    qparams = out_scale, out_zero_point, out_bits
    return finish(total, None, None, None, bias, residual, activation, *qparams)


def empty_heads(
    value: Tensor,
    num_rows: int,
    mean_heads: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Tensor:
    """Memory for the result of the epilogue; raises ValueError for operands that do not fit."""
    width = value.shape[2] if mean_heads else value.shape[1] * value.shape[2]
    qparams = out_scale, out_zero_point, out_bits
    check_epilogue(num_rows, width, None, bias, residual, activation, *qparams)
    return empty_result(value, num_rows, width, out_scale, out_bits)


def attention_cost(
    gathered: int,
    flops: int,
    value: Tensor,
    rowptr: Tensor,
    src: Tensor,
    read: tuple[Tensor | None, ...],
    mean_heads: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    out_bits: int = 8,
) -> Cost:
    """Each edge reads `gathered` bytes and does `flops` operations; `read` is read once."""
    edges, num_rows, (heads, channels) = src.shape[0], rowptr.shape[0] - 1, value.shape[1:]
    width = channels if mean_heads else heads * channels
    written = result_bytes(num_rows, width, out_scale, out_bits)
    moved = edges * gathered + num_bytes(rowptr, src, bias, residual, *read) + written
    return Cost(edges * flops, moved, edges * gathered)


Edges = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def edge_rows(edges: Edges, heads: tuple[int, ...]) -> Tensor | None:
    """What edges add [E, H, C], in the order of destinations: for references.

    edges: `edge` [E, H, C] or, with `edge_weight` [H * C, D] and `edge_bias` [H * C], [E, D]; and
        `edge_index` [E], where the edges by destination stand in it.
    """
    edge, edge_index, weight, bias = edges
    if edge is None or edge_index is None:
        return None
    own = edge.index_select(0, edge_index)
    return own if weight is None else linear(own, weight, bias).unflatten(1, heads)


def edge_flops(edges: Edges) -> int:
    """Operations that the linear layer takes for an edge."""
    return 0 if edges[2] is None else 2 * edges[2].numel()


def check_edges(edges: Edges, src: Tensor, heads: tuple[int, ...]) -> None:
    """Raise ValueError unless what `edge_rows` takes fits together, or all is None."""
    edge, edge_index, weight, bias = edges
    if (edge is None) != (edge_index is None):
        raise ValueError("edge and edge_index must be given together")
    width = heads[0] * heads[1]
    if edge is None or edge_index is None:
        if weight is not None or bias is not None:
            raise ValueError("edge_weight and edge_bias go with edge")
        return
    if weight is None:
        check_floats("edge", edge, (src.shape[0], *heads))
    else:
        check_floats("edge", edge, (src.shape[0], *edge.shape[1:2]))
        check_floats("edge_weight", weight, (width, *edge.shape[1:2]))
    if bias is not None:
        if weight is None:
            raise ValueError("edge_bias goes with edge_weight")
        check_floats("edge_bias", bias, (width,))
    if edge_index.dtype != src.dtype or edge_index.shape != src.shape:
        got = f"{edge_index.dtype} {tuple(edge_index.shape)}"
        raise ValueError(f"edge_index must be {src.dtype} {tuple(src.shape)}, got {got}")


# Few shapes, as each block of channels is a kernel of its own: heads that fill registers together,
# with blocks that overlap, that fill more than one; heads of their own; more heads than lanes.
_SHAPES = [(8, 8), (3, 7), (12, 8), (1, 40), (2, 256), (1, 1), (4, 40), (18, 4), (5, 6)]


class Samples:
    """Random operands for the graphs and head shapes that every attention op is tried on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.device)

    def codes(self, *shape: int) -> Tensor:
        codes = torch.randint(-128, 128, shape, generator=self._generator, dtype=torch.int8)
        return codes.to(self.device)

    def graphs(self) -> Iterator[tuple[int, int, int, int, Tensor, Tensor]]:
        """(number, heads, channels, rows of x, rowptr, src)."""
        graphs = [*sample_graphs(self.device), sample_large_graph(self.device)]
        for number, (heads, channels) in enumerate(_SHAPES * 2):
            yield number, heads, channels, *graphs[(number + number // 9) % len(graphs)]

    def edges(self, number: int, heads: int, channels: int, src: Tensor) -> Edges:
        """An edge term with its order, features of edges with their layer, or none."""
        if number % 3 == 0:
            return None, None, None, None
        edges, width = src.shape[0], heads * channels
        order = torch.arange(edges - 1, -1, -1, dtype=src.dtype, device=self.device)
        if number % 3 == 1:
            return self.floats(edges, heads, channels), order, None, None
        features = number % 4 + 1
        bias = self.floats(width) if number % 2 else None
        return self.floats(edges, features), order, self.floats(width, features), bias

    def epilogue(self, number: int, heads: int, channels: int, num_rows: int) -> dict[str, Any]:
        """Keyword arguments that finish the rows of a float op."""
        mean_heads = number % 4 == 3
        width = channels if mean_heads else heads * channels
        # An ELU leaves little of the values that errors of a hub's long sums are compared with.
        kinds = ("none", "relu", "none" if num_rows == 3 else "elu")
        return {
            "mean_heads": mean_heads,
            "bias": self.floats(width) if number % 3 else None,
            "residual": self.floats(num_rows, width) if number % 5 == 1 else None,
            "activation": kinds[number % 7 % 3],
        }

    def quantized_epilogue(
        self, number: int, heads: int, channels: int, num_rows: int
    ) -> dict[str, Any]:
        """Keyword arguments that finish the rows of a quantized op, most of them as codes."""
        given = self.epilogue(number, heads, channels, num_rows)
        if number % 7 < 5:
            scale, zero_point = sample_qparams(0.1137, (0, 5, -2)[number % 3], self.device)
            out_bits = (8, 8, 4, 8, 2)[number % 5]
            given |= {"out_scale": scale, "out_zero_point": zero_point, "out_bits": out_bits}
        return given
