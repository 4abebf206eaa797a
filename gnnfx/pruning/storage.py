"""Sparse weights on disk: a bit for each place and the values of the places that are not zero.

A bitmap needs 1/32 of the dense bytes beside the values, whatever the sparsity; above 97 % zeros
or so, columns and row starts (CSR) need less.  Each tensor is stored in the smallest form, its
bytes counted as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gnnfx.errors import InputError

Packed = dict[str, Tensor]


def pack(tensor: Tensor) -> Packed:
    """The smallest form of `tensor`: {'dense'}, {'bitmap', ...} or {'rowptr', ...}."""
    dense = tensor.detach().cpu().contiguous()
    forms = [{"dense": dense}]
    if dense.dim() > 1 and dense.numel():
        forms += [_bitmap(dense), _csr(dense)]
    return min(forms, key=packed_bytes)


def unpack(packed: Packed) -> Tensor:
    """The tensor that was packed, bit for bit; InputError if `packed` is no packed tensor."""
    if "dense" in packed:
        return packed["dense"]
    if not {"values", "shape"} <= set(packed):
        raise InputError(f"expected a packed tensor, got the parts {sorted(packed)}")
    shape, values = packed["shape"].tolist(), packed["values"]
    flat = torch.zeros(math.prod(shape), dtype=values.dtype)
    if "bitmap" in packed:
        bits = np.unpackbits(packed["bitmap"].numpy(), count=flat.numel())
        flat[torch.from_numpy(bits.astype(bool))] = values
    else:
        counts = packed["rowptr"].diff().long()
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        flat[rows * (flat.numel() // shape[0]) + packed["columns"].long()] = values
    return flat.view(shape)


def packed_bytes(packed: Packed) -> int:
    """The bytes of all parts of a packed tensor, its shape included."""
    return sum(part.numel() * part.element_size() for part in packed.values())


def zeros_remark(name: str, tensor: Tensor) -> str:
    """What a report says of a weight whose single values were pruned."""
    share = 1 - int(tensor.count_nonzero()) / max(tensor.numel(), 1)
    size = packed_bytes(pack(tensor))
    return f"{share:.0%} of {name} set to zero, stored in {size:,} bytes"


def pack_state(state: Mapping[str, Tensor]) -> dict[str, Packed]:
    """A state dict with every tensor packed: tensors only, fit for `torch.save`."""
    return {name: pack(tensor) for name, tensor in state.items()}


def unpack_state(packed: Mapping[str, Packed]) -> dict[str, Tensor]:
    """The state dict behind `pack_state`."""
    return {name: unpack(parts) for name, parts in packed.items()}


def _bitmap(dense: Tensor) -> Packed:
    there = _there(dense)
    bits = torch.from_numpy(np.packbits(there.numpy().reshape(-1)))
    return {"bitmap": bits, "values": dense[there], "shape": _shape(dense)}


def _csr(dense: Tensor) -> Packed:
    there = _there(dense).view(dense.shape[0], -1)
    rowptr = torch.zeros(len(there) + 1, dtype=torch.int32)
    rowptr[1:] = there.sum(1).cumsum(0)
    # int16 cannot count columns beyond 32,767.
    narrow = torch.int16 if there.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    columns = there.nonzero()[:, 1].to(narrow)
    values = dense.view(there.shape)[there]
    return {"rowptr": rowptr, "columns": columns, "values": values, "shape": _shape(dense)}


def _there(dense: Tensor) -> Tensor:
    """Which values are stored: negative zeros and NaN too, so that nothing is lost."""
    return (dense != 0) | dense.signbit()


def _shape(dense: Tensor) -> Tensor:
    return torch.tensor(dense.shape, dtype=torch.int32)
