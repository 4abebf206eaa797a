"""Sort edges by destination: (rowptr, src_sorted, perm) from an edge list.

`rowptr[i]` counts the edges into nodes below i, and `perm[k]` is the place that edge k of the
sorted list had in the input; edges into one node keep their order.

`compress_self_loops` gives (rowptr, src_sorted) of the edge list in which the self-loops that are
there are left out and each node has one more edge, from itself, behind its others.
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


def _check_edges(src: Tensor, dst: Tensor) -> None:
    for name, index in (("src", src), ("dst", dst)):
        if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
            got = f"{index.dtype} {tuple(index.shape)}"
            raise ValueError(f"{name} must be a vector of int32 or int64, got {got}")
    if src.shape[0] != dst.shape[0]:
        raise ValueError(f"src has {src.shape[0]} edges but dst has {dst.shape[0]}")


def fake(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    _check_edges(src, dst)
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


def self_loops_reference(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor]:
    """`src`, `dst` [E] with one self-loop a node, sorted by `dst`; ids must be below `num_dst`."""
    kept = src != dst
    loops = torch.arange(num_dst, dtype=src.dtype, device=src.device)
    src, dst = (torch.cat([ids[kept], loops.to(ids.dtype)]) for ids in (src, dst))
    rowptr, ordered, _ = sort_by_destination(src, dst, num_dst)
    return rowptr, ordered


def self_loops_fake(src: Tensor, dst: Tensor, num_dst: int) -> tuple[Tensor, Tensor]:
    _check_edges(src, dst)
    edges = torch.library.get_ctx().new_dynamic_size()
    dtype = index_dtype(src.shape[0], num_dst)
    return src.new_empty((num_dst + 1,), dtype=dtype), src.new_empty((edges,), dtype=dtype)


def self_loops_cost(src: Tensor, dst: Tensor, num_dst: int) -> Cost:
    """As `compress`, where no edge is a self-loop, with an edge more a node and no permutation."""
    entry = index_dtype(src.shape[0], num_dst).itemsize
    written = entry * (num_dst + 1 + src.shape[0] + num_dst)
    return Cost(flops=src.shape[0], bytes=2 * num_bytes(src, dst) + written)


def self_loops_samples(device: str = "cpu") -> Iterator[tuple[Tensor, Tensor, int]]:
    for src, dst, num_dst in samples(device):
        if num_dst:
            yield src % num_dst, dst, num_dst
            yield dst, dst, num_dst  # nothing but self-loops


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
COMPRESS_SELF_LOOPS = register(
    OpDef(
        "compress_self_loops",
        self_loops_reference,
        self_loops_fake,
        self_loops_cost,
        self_loops_samples,
        impls=(numba_impl("gnnfx.kernels.compress_numba", "compress_self_loops"),),
        sized_by_values=True,
    )
)
