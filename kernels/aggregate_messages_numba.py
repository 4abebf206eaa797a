"""CPU code of `aggregate_messages`: messages are made in registers where they are reduced.

Edges come in tiles where a matrix product stands before or after a message, so that its operands
and results stay in the cache.  A tile leaves the partial result of a row that goes on to the next.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gnnfx.kernels.aggregate_messages import (
    MESSAGE_ACTIVATIONS,
    reduced_channels,
)
from gnnfx.kernels.compile_numba import choose_lanes, compiled
from gnnfx.kernels.csr import reject_large
from gnnfx.kernels.csr_numba import piece_start
from gnnfx.kernels.epilogue_numba import (
    CHANNELS,
    OUT,
    OUT_HIGH,
    OUT_LOW,
    OUT_SCALE,
    OUT_ZERO_POINT,
    PIECES,
    RESIDUAL,
    ROWS,
    Epilogue,
    epilogue_arguments,
    finish,
    to_codes,
)
from gnnfx.kernels.float_linear import LINEAR
from gnnfx.kernels.memory import empty
from gnnfx.kernels.messages_numba import (
    FEW_FEATURES,
    FIRST_EDGE,
    GLU,
    IN_TILE,
    LAST_EDGE,
    LISTED,
    MEAN,
    MULTIPLIED,
    NEXT_PARTIAL,
    NO_EDGES,
    PARTIAL,
    ROWPTR,
    TEMPERATURE,
    X_DST,
    load_own,
    make_message,
    prefetch_parts,
)
from gnnfx.kernels.quantize_numba import pack_codes, unpack_codes
from gnnfx.kernels.threads import address, count_pieces, launch
from gnnfx.kernels.vectors_numba import (
    exp,
    greater,
    lesser,
    load_f32,
    load_f32_like,
    multiply_add,
    read_f32,
    read_i32,
    splat_f32,
    splat_f32_like,
    store,
    take_piece,
)

# Values of a tile in front of and behind its matrix product: a part of the cache of a core.
_TILE_VALUES = 2**20


@njit(forceinline=True)
def _temperature(a, channel, like):
    """What logits are made with of messages."""
    if a[TEMPERATURE] == 0:
        return splat_f32_like(np.float32(1), like)
    return load_f32_like(a[TEMPERATURE] + 4 * channel, like)


@njit(forceinline=True)
def _weigh(a, peak, first, stop, channel, own, gate, how):
    """The sum of messages times their softmax, from the greatest of their logits."""
    zero = splat_f32_like(np.float32(0), own)
    heat, total, weights = _temperature(a, channel, own), zero, zero
    for edge in range(first, stop):
        value = make_message(a, edge, channel, own, gate, how)
        weight = exp(value * heat - peak)
        weights = weights + weight
        total = multiply_add(weight, value, total)
    return total / (weights + splat_f32_like(np.float32(1e-16), own))


def _reduce_messages(lanes, coded, reads_x, edges, kind, slope, offset, reduce):
    """Reduce the messages of edges FIRST_EDGE to LAST_EDGE into rows."""
    how = (coded, reads_x, edges, kind, np.float32(slope), np.float32(offset))
    size = 1 if coded else 4
    row_bytes, edge_bytes = size * lanes, 4 * lanes
    greatest, least, softmax = reduce == "max", reduce == "min", reduce == "softmax"
    start = np.float32(-np.inf if greatest or softmax else np.inf if least else 0)
    gated = kind >= GLU

    def kernel(a):
        rows, channels, rowptr = a[ROWS], a[CHANNELS], a[ROWPTR]
        width = 2 * channels if gated else channels
        begin_edge, end_edge = a[FIRST_EDGE], a[LAST_EDGE]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                row_first = read_i32(rowptr + 4 * row)
                row_stop = read_i32(rowptr + 4 * row + 4)
                first, stop = max(row_first, begin_edge), min(row_stop, end_edge)
                done = row_stop <= end_edge
                if first >= stop and not done:
                    continue
                channel = 0
                while channel < channels:
                    channel = min(channel, channels - lanes)
                    total = splat_f32(start, lanes)
                    own = load_own(a, row, channel, width, total)
                    gate = own
                    if gated:
                        gate = load_own(a, row, channels + channel, width, total)
                    if row_first == row_stop:
                        total = splat_f32(np.float32(0), lanes)
                    if row_first < begin_edge:
                        total = load_f32(a[PARTIAL] + 4 * channel, lanes)
                    for edge in range(first, stop):
                        prefetch_parts(
                            a, edge, channel, gated, reads_x, edges, size, row_bytes, edge_bytes
                        )
                        value = make_message(a, edge, channel, own, gate, how)
                        if greatest:
                            total = greater(total, value)
                        elif least:
                            total = lesser(total, value)
                        elif softmax:
                            total = greater(total, value * _temperature(a, channel, own))
                        else:
                            total = total + value
                    if softmax and first < stop:
                        total = _weigh(a, total, first, stop, channel, own, gate, how)
                    if done:
                        if a[MEAN] != 0:
                            degree = np.float32(max(row_stop - row_first, 1))
                            total = total * splat_f32(np.float32(1) / degree, lanes)
                        finish(total, a, row, channel)
                    else:
                        store(a[NEXT_PARTIAL] + 4 * channel, total)
                    channel += lanes

    return kernel


def _write_messages(lanes, edges, kind, slope, to_bytes):
    """Write the messages of edges FIRST_EDGE to LAST_EDGE one after the other, to OUT."""
    how, bytes_ahead = (False, True, edges, kind, np.float32(slope), np.float32(0)), 4 * lanes

    def kernel(a):
        rows, channels, rowptr = a[ROWS], a[CHANNELS], a[ROWPTR]
        begin_edge, end_edge = a[FIRST_EDGE], a[LAST_EDGE]
        while True:
            piece = take_piece(a)
            if piece >= a[PIECES]:
                return
            begin = piece_start(rowptr, rows, a[PIECES], piece)
            for row in range(begin, piece_start(rowptr, rows, a[PIECES], piece + 1)):
                first = max(read_i32(rowptr + 4 * row), begin_edge)
                stop = min(read_i32(rowptr + 4 * row + 4), end_edge)
                for edge in range(first, stop):
                    channel = 0
                    while channel < channels:
                        channel = min(channel, channels - lanes)
                        own = load_own(a, row, channel, channels, splat_f32(np.float32(0), lanes))
                        prefetch_parts(
                            a, edge, channel, False, True, edges, 4, bytes_ahead, bytes_ahead
                        )
                        value = make_message(a, edge, channel, own, own, how)
                        place = (edge - begin_edge) * channels + channel
                        if to_bytes:
                            scale, zero_point = read_f32(a[OUT_SCALE]), read_i32(a[OUT_ZERO_POINT])
                            codes = to_codes(value, scale, zero_point, a[OUT_LOW], a[OUT_HIGH])
                            store(a[OUT] + place, codes)
                        else:
                            store(a[OUT] + 4 * place, value)
                        channel += lanes

    return kernel


@dataclass
class Messages:
    """The operands of messages in the order of destinations: what `aggregate_messages` takes."""

    x: Tensor
    rowptr: Tensor
    src: Tensor
    perm: Tensor
    x_dst: Tensor | None
    edge: Tensor | None
    edge_weight: Tensor | None
    edge_bias: Tensor | None
    activation: str
    slope: float
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    offset: float = 0.0
    tiled: bool = True  # whether the layer of many features of edges may run on tiles

    @property
    def num_edges(self) -> int:
        return self.src.shape[0]

    @property
    def edges(self) -> int:
        """NO_EDGES, LISTED, IN_TILE or MULTIPLIED."""
        if self.edge is None:
            return NO_EDGES
        if self.edge_weight is None:
            return LISTED
        few = self.edge_weight.shape[1] <= FEW_FEATURES
        return MULTIPLIED if few or not self.tiled else IN_TILE

    @property
    def kind(self) -> int:
        """The activation as its place in MESSAGE_ACTIVATIONS."""
        return MESSAGE_ACTIVATIONS.index(self.activation)

    def edge_rows(self, tile: Tile) -> Tensor | None:
        """What edges of a tile add to their messages: [T, C], or that of all edges [E, C]."""
        if self.edge is None or self.edge_weight is None or self.edges != IN_TILE:
            return self.edge
        listed = self.edge.index_select(0, self.perm[tile.first_edge : tile.last_edge])
        rows: Tensor = LINEAR.run(listed, self.edge_weight, self.edge_bias)
        return rows

    def arguments(self, tile: Tile, edge_rows: Tensor | None) -> list[int]:
        """Places X to LAST_EDGE for the rows of a tile."""
        return [
            *(address(self.x), address(self.src), address(self.rowptr) + 4 * tile.first_row),
            *(self.num_edges, _from_row(self.x_dst, tile.first_row), address(edge_rows)),
            *(address(self.perm), address(self.scale), address(self.zero_point)),
            *(tile.first_edge, tile.last_edge),
        ]


@dataclass(frozen=True)
class Tile:
    """Edges first_edge to last_edge, and the rows that they belong to or that end among them."""

    first_edge: int
    last_edge: int
    first_row: int
    last_row: int


def tiles(rowptr: Tensor, num_edges: int, size: int) -> Iterator[Tile]:
    """Tiles of `size` edges; together they hold every row, the last those behind all edges."""
    num_rows = rowptr.shape[0] - 1
    ends = torch.arange(size, num_edges + size, size).clamp(max=num_edges)
    finished = torch.searchsorted(rowptr[1:], ends.to(rowptr.dtype), right=True).tolist()
    first_row = 0
    for number, last_row in enumerate(finished):
        first = number * size
        yield Tile(first, min(first + size, num_edges), first_row, min(last_row + 1, num_rows))
        first_row = last_row


def _from_row(rows: Tensor | None, first: int) -> int:
    """Where a matrix begins that leaves out some rows; 0 for None."""
    return 0 if rows is None else address(rows) + rows.element_size() * first * rows.shape[1]


class Reduction:
    """Rows of a result, reduced tile by tile."""

    def __init__(
        self, out: Tensor, reduce: str, epilogue: Epilogue, temperature: Tensor | None = None
    ) -> None:
        self._out, self._reduce, self._epilogue = out, reduce, epilogue
        self._temperature = temperature
        self._partials = empty((2, out.shape[1]))
        self._last = 0  # which of them holds what the tile before left of a row

    def add(self, messages: Messages, tile: Tile, edge_rows: Tensor | None, reads_x: bool) -> None:
        """Reduce the messages of a tile into its rows: `edge_rows` itself unless `reads_x`."""
        num_rows, channels = tile.last_row - tile.first_row, self._out.shape[1]
        epilogue = self._epilogue.arguments(self._out)
        epilogue[0] = num_rows
        epilogue[OUT - ROWS] = _from_row(self._out, tile.first_row)
        epilogue[RESIDUAL - ROWS] = _from_row(self._epilogue.residual, tile.first_row)
        partials = [address(self._partials) + 4 * channels * row for row in (0, 1)]
        partial = (self._reduce == "mean", partials[self._last], partials[1 - self._last])
        weight, product = None, [0, 0, 0]
        if messages.edges == MULTIPLIED and messages.edge_weight is not None:
            weight = messages.edge_weight.t().contiguous()
            product = [address(weight), address(messages.edge_bias), weight.shape[0]]
        args = [*epilogue, *messages.arguments(tile, edge_rows), *partial, *product]
        args.append(address(self._temperature))
        kind = "sum" if self._reduce == "mean" else self._reduce
        most = 128 if messages.edges == MULTIPLIED else 64
        lanes, coded = choose_lanes(channels, most), messages.scale is not None
        how = (coded, True, messages.edges, messages.kind, messages.slope, messages.offset)
        if not reads_x:
            how = (False, False, IN_TILE, 0, 0.0, 0.0)
            args[X_DST - ROWS] = 0
        kernel = compiled(_reduce_messages, lanes, *how, kind)
        operations = (tile.last_edge - tile.first_edge + num_rows) * channels
        launch(kernel, count_pieces(operations, num_rows), args)
        self._last = 1 - self._last


def write_messages(
    messages: Messages, tile: Tile, out: Tensor, qparams: tuple[Tensor, Tensor] | None
) -> None:
    """Write the messages of a tile to `out` [T, C]: floats, or int8 codes of given `qparams`."""
    num_rows, channels = tile.last_row - tile.first_row, out.shape[1]
    scale, zero_point = (None, None) if qparams is None else qparams
    epilogue = epilogue_arguments(
        num_rows, channels, out, None, None, None, "none", scale, zero_point
    )
    args = [*epilogue, *messages.arguments(tile, messages.edge), *(0, 0, 0), *(0, 0, 0)]
    how = (messages.edges, messages.kind, messages.slope, qparams is not None)
    kernel = compiled(_write_messages, choose_lanes(channels, 64), *how)
    launch(kernel, count_pieces(out.numel(), num_rows), args)


def aggregate(messages: Messages, reduction: Reduction) -> None:
    """Reduce all messages, in tiles if features of edges pass a linear layer first."""
    num_rows, size = messages.rowptr.shape[0] - 1, messages.num_edges
    if messages.edges != IN_TILE:
        whole = Tile(0, size, 0, num_rows)
        reduction.add(messages, whole, messages.edge, reads_x=True)
        return
    for tile in tiles(messages.rowptr, size, tile_edges(messages.x.shape[1])):
        reduction.add(messages, tile, messages.edge_rows(tile), reads_x=True)


def tile_edges(channels: int) -> int:
    """Edges of a tile whose rows have so many channels."""
    return max(_TILE_VALUES // max(channels, 1), 1)


def reject_messages(rowptr: Tensor, src: Tensor, **operands: Tensor | None) -> str | None:
    """Why the kernels cannot take these operands, or None."""
    for name, operand in operands.items():
        if operand is not None and not operand.is_contiguous():
            return f"{name} is not contiguous"
    if src.shape[0] == 0:
        return "there are no edges"
    return reject_large(rowptr, src)


def reject_aggregate_messages(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> str | None:
    return reject_messages(
        *(rowptr, src),
        x=x,
        x_dst=x_dst,
        edge=edge,
        temperature=temperature,
        bias=bias,
        residual=residual,
        perm=perm,
    )


def aggregate_messages(
    x: Tensor,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    out = empty((rowptr.shape[0] - 1, reduced_channels(x.shape[1], message_activation)))
    if out.numel():
        parts = (x_dst, edge, edge_weight, edge_bias, message_activation, slope)
        rest = (None, None, offset, reduce != "softmax")
        messages = Messages(x, rowptr, src, perm, *parts, *rest)
        epilogue = Epilogue(None, bias, residual, activation)
        aggregate(messages, Reduction(out, reduce, epilogue, temperature))
    return out


def reject_quantized_aggregate_messages(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> str | None:
    return reject_messages(
        *(rowptr, src),
        x=x,
        x_dst=x_dst,
        edge=edge,
        temperature=temperature,
        bias=bias,
        residual=residual,
        perm=perm,
    )


def quantized_aggregate_messages(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    channels: int,
    rowptr: Tensor,
    src: Tensor,
    perm: Tensor,
    x_dst: Tensor | None = None,
    edge: Tensor | None = None,
    edge_weight: Tensor | None = None,
    edge_bias: Tensor | None = None,
    message_activation: str = "none",
    slope: float = 0.0,
    reduce: str = "sum",
    offset: float = 0.0,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    out_zero_point: Tensor | None = None,
    bits: int = 8,
    out_bits: int = 8,
) -> Tensor:
    dtype = torch.float32 if out_scale is None else torch.int8
    out = empty((rowptr.shape[0] - 1, reduced_channels(channels, message_activation)), dtype)
    if out.numel():
        codes = unpack_codes(x, channels, bits)
        parts = (x_dst, edge, edge_weight, edge_bias, message_activation, slope)
        rest = (scale, zero_point, offset, reduce != "softmax")
        messages = Messages(codes, rowptr, src, perm, *parts, *rest)
        epilogue = Epilogue(None, bias, residual, activation, out_scale, out_zero_point, out_bits)
        aggregate(messages, Reduction(out, reduce, epilogue, temperature))
    return out if out_scale is None else pack_codes(out, out_bits)
