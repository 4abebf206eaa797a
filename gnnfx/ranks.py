"""The processes of data-parallel training: what they agree on.

Every function but `count` must be called by all processes, as collectives are.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def count() -> int:
    """The processes of the default group that this one belongs to; 1 without a group."""
    initialized = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if initialized else 1


def join(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of all processes, float of one shape."""
    ends = torch.stack([-low, high])
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return -ends[0], ends[1]


def gather(values: Tensor) -> Tensor:
    """The values [n] of all processes one after the other; n may differ."""
    own = torch.tensor([values.numel()], device=values.device)
    counts = [torch.zeros_like(own) for _ in range(count())]
    distributed.all_gather(counts, own)
    sizes = [int(c) for c in counts]
    padded = values.new_zeros(max(sizes))
    padded[: values.numel()] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
