"""The ways to run one model that are compared, by device and in the order of the tables."""

from __future__ import annotations

from collections.abc import Callable

from workloads import Workload

from peers.by_hand import by_hand, by_hand_half
from peers.dgl_library import dgl
from peers.optimized import optimized
from peers.peer import EXACT_TOLERANCE, Peer, Unavailable
from peers.pyg import compiled, csr, csr_cached, eager
from peers.tinygnn_library import tinygnn
from peers.turbo import turbo

PEERS: dict[str, dict[str, Callable[[Workload], Peer]]] = {
    "cpu": {
        "eager": eager,
        "compile": compiled,
        "csr": csr,
        "csr-cached": csr_cached,
        "torch.sparse": by_hand,
        "dgl": dgl,
        "tinygnn": tinygnn,
        "gnnfx-fp32": optimized("fp32"),
        "gnnfx-int8": optimized("int8"),
        "gnnfx-int4": optimized("int4"),
    },
    "cuda": {
        "eager": eager,
        "compile": compiled,
        "torch.sparse": by_hand,
        "torch.sparse-half": by_hand_half,
        "turbo-gnn": turbo,
        "gnnfx-fp32": optimized("fp32"),
        "gnnfx-int8": optimized("int8"),
        "gnnfx-int4": optimized("int4"),
    },
}

__all__ = ["EXACT_TOLERANCE", "PEERS", "Peer", "Unavailable"]
