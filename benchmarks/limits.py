"""What the machine can do: bytes a second copied and gathered, operations a second multiplied.

Measured in the same process as everything else, each the best of several tries: a limit is what is
possible, not what is usual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rounds import clock
from torch import Tensor

_TRIES = 7
_LEAST_COPIED, _MOST_COPIED = 2**12, 2**28  # bytes; caches hold less than the most
_MOST_ROWS = 2**18
_ROWS_IN_CACHE = 2**12


@dataclass
class Limits:
    """Rates of one device for one graph; each is measured when it is first asked for.

    index: int32 sources [E] in the order of destinations, which is how aggregation reads rows.
    """

    index: Tensor
    nodes: int
    device: str = "cpu"
    _rates: dict[tuple[Any, ...], float] = field(default_factory=dict)

    @classmethod
    def of(cls, edge_index: Tensor, nodes: int, device: str = "cpu") -> Limits:
        """The limits for a graph."""
        order = edge_index[1].argsort(stable=True)
        return cls(edge_index[0][order].int(), nodes, device)

    def copy(self, moved: int = _MOST_COPIED) -> float:
        """Bytes a second of a copy that reads and writes about so many, in caches or not."""
        size = min(max(1 << moved.bit_length(), _LEAST_COPIED), _MOST_COPIED)
        return _copy(size, self.device, torch.get_num_threads())

    def gather(self, row_bytes: int) -> float:
        """Bytes a second of reading such rows of a table with a row a node, one for each edge."""
        return self._rate(("gather", row_bytes), lambda: self._gather(row_bytes))

    def gemm(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
        """Operations a second of [rows, inputs] times [inputs, outputs], two a multiply-add."""
        rows = min(rows, _MOST_ROWS)
        key = ("gemm", rows, inputs, outputs, str(dtype).removeprefix("torch."))
        return self._rate(key, lambda: _gemm(rows, inputs, outputs, dtype, self.device))

    def fused_gemm(self, inputs: int, outputs: int) -> float:
        """As `gemm` in float32, of as many rows as caches hold: none is written to memory."""
        sizes = (_ROWS_IN_CACHE >> shift for shift in range(3))
        return max(self.gemm(rows, inputs, outputs, torch.float32) for rows in sizes)

    def to_dict(self) -> dict[str, float]:
        """All rates measured so far, a line each."""
        found = {" ".join(map(str, key)): rate for key, rate in self._rates.items()}
        return {"copy": self.copy(), **found}

    def _rate(self, key: tuple[Any, ...], measure: Callable[[], float]) -> float:
        if key not in self._rates:
            self._rates[key] = measure()
        return self._rates[key]

    def _gather(self, row_bytes: int) -> float:
        table = torch.zeros((self.nodes, row_bytes), dtype=torch.int8, device=self.device)
        moved = self.index.shape[0] * row_bytes
        if self.device == "cpu":
            from gather_numba import read_rows

            return moved / _best(lambda: read_rows(table, self.index), self.device)
        # Rows are written, too: the bytes of both.
        return 2 * moved / _best(lambda: table.index_select(0, self.index), self.device)


@functools.cache
def _copy(moved: int, device: str, threads: int) -> float:
    source = torch.zeros(moved // 2, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return moved / _best(lambda: target.copy_(source), device)


def _gemm(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str) -> float:
    operations = 2 * rows * inputs * outputs
    if dtype == torch.float32:
        x, weight = torch.zeros((rows, inputs)), torch.zeros((inputs, outputs))
        x, weight = x.to(device), weight.to(device)
        return operations / _best(lambda: x @ weight, device)
    codes = torch.zeros((rows, inputs), dtype=torch.int8, device=device)
    other = torch.zeros((inputs, outputs), dtype=torch.int8, device=device)
    calls: list[Callable[[], object]] = []
    if device == "cpu":
        unsigned, packed = (
            codes.view(torch.uint8),
            torch.ops.onednn.qlinear_prepack(other.t(), None),
        )
        ones, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
        tail: tuple[Any, ...] = (ones, zeros, None, 1.0, 0, torch.int8, "none", [], "")
        calls.append(lambda: torch.ops.onednn.qlinear_pointwise(unsigned, 1.0, 128, packed, *tail))
    elif inputs % 8 == 0 and outputs % 8 == 0:
        calls.append(lambda: torch._int_mm(codes, other))
    return max((operations / _best(call, device) for call in calls), default=0.0)


def _best(call: Callable[[], object], device: str) -> float:
    call()
    return max(min(clock(call, device) for _ in range(_TRIES)), 1e-9)
