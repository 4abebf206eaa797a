"""Sort edges by destination: (rowptr, src_sorted, perm) from an edge list.

`rowptr[i]` counts the edges into nodes below i, and `perm[k]` is the place that edge k of the
sorted list had in the input; edges into one node keep their order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gnnfx.ir.op import Cost, OpDef, register
from gnnfx.kernels.csr import index_dtype, num_bytes, sort_by_destination
from gnnfx.kernels.launch import numba_impl


def reference(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stable sort of `src`, `dst` [E] by `dst`; ids must be in range."""
    return sort_by_destination(src, dst, num_dst)


def fake(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    for name, index in (("src", src), ("dst", dst)):
        if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
            got = f"{index.dtype} {tuple(index.shape)}"
            raise ValueError(f"{name} must be a vector of int32 or int64, got {got}")
    if src.shape[0] != dst.shape[0]:
        raise ValueError(f"src has {src.shape[0]} edges but dst has {dst.shape[0]}")
    dtype = index_dtype(src.shape[0], num_dst)
    rows = src.new_empty((num_dst + 1,), dtype=dtype)
    return rows, src.new_empty(src.shape, dtype=dtype), src.new_empty(src.shape, dtype=dtype)


def cost(src: Tensor, dst: Tensor, num_dst: int) -> Cost:
    """A counting sort reads `dst` twice and `src` once, and writes the three results."""
    entry = index_dtype(src.shape[0], num_dst).itemsize
    written = entry * (num_dst + 1 + 2 * src.shape[0])
    return Cost(flops=0, bytes=num_bytes(src, dst, dst) + written)


def samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    for num_src, num_dst, edges in [
        (7, 7, 19),
        (4, 4, 0),
        (1, 1, 3),
        (9, 5, 40),
        (3000, 2000, 9000),
    ]:
        src = torch.randint(num_src, (edges,), generator=generator).to(device)
        dst = torch.randint(num_dst, (edges,), generator=generator).to(device)
        yield src, dst, num_dst
        yield src.int(), dst.int().clamp(max=num_dst // 2), num_dst
        yield src, dst.sort().values, num_dst


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
