"""Whether a peer fits into memory, found out on a graph a sixteenth as large."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from peers import Peer
from workloads import SHRINK, Workload

from gnnfx.measure import peak_bytes

_SHARE = 0.7
# A message of PyG is copied about so often before it is summed.
_COPIES = 8


def available_bytes(device: str) -> int:
    """What can be allocated now, with a margin for what all peers make of the graph."""
    if device == "cpu":
        return int(_SHARE * psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info()
    return int(_SHARE * free)


def needs_estimate(work: Workload, device: str) -> bool:
    """Whether messages of all edges at once come near the memory there is."""
    width = max(work.channels)
    return 4 * work.edges * width * _COPIES > available_bytes(device) / 3


def estimated_bytes(make: Callable[[Workload], Peer], small: Workload, device: str) -> int:
    """Peak of a call on the whole graph, from that of a call on `small`.

    Peaks are proportional to the numbers of nodes and edges, which shrink together.
    """
    peer = make(small)
    prepared = peer.prepare(small.graph)
    return SHRINK * peak_bytes(lambda: peer.call(prepared), repeats=1, device=device)
