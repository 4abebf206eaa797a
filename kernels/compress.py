"""compress: an edge list as CSR by destination.

rowptr[i] : rowptr[i + 1] are the edges that end in node i, in the order they had in the list.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.launch import numba_impl

_INT32_MAX = 2**31 - 1


def reference(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rowptr [num_dst + 1], source of each edge [E], its position in the list [E]), int32."""
    perm = torch.argsort(dst, stable=True)
    counts = torch.zeros(num_dst, dtype=torch.int64, device=dst.device)
    counts.index_add_(0, dst.long(), torch.ones_like(dst, dtype=torch.int64))
    rowptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return rowptr.int(), src.index_select(0, perm).int(), perm.int()


def fake(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    if dst.dim() != 1 or src.dim() != 1 or dst.is_floating_point() or src.is_floating_point():
        raise ValueError(
            f"src and dst must be vectors of integers, got {src.dtype} {tuple(src.shape)} and "
            f"{dst.dtype} {tuple(dst.shape)}"
        )
    rowptr = dst.new_empty((num_dst + 1,), dtype=torch.int32)
    return rowptr, src.new_empty(dst.shape, dtype=torch.int32), dst.new_empty(
        dst.shape, dtype=torch.int32
    )


def cost(src: Tensor, dst: Tensor, num_dst: int) -> Cost:
    """Destinations are read twice (count, place), sources once; two numbers an edge are written."""
    edges = dst.numel()
    read = 2 * dst.nbytes + src.nbytes
    return Cost(flops=2 * edges, bytes=read + 8 * edges + 4 * (num_dst + 1))


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    for nodes, edges, dtype in [
        (7, 19, torch.int64),
        (4, 0, torch.int64),
        (1, 5, torch.int64),
        (300, 5000, torch.int64),
        (50, 400, torch.int32),
    ]:
        src = torch.randint(nodes, (edges,), generator=generator).to(dtype)
        dst = torch.randint(nodes, (edges,), generator=generator).to(dtype)
        yield src.to(device), dst.to(device), nodes
        yield src.to(device), (dst // 3).to(device), nodes + 2


COMPRESS = register(
    OpDef(
        "compress",
        reference,
        fake,
        cost,
        samples,
        impls=(numba_impl("gnnfx.kernels.compress_numba", "compress"),),
    )
)
