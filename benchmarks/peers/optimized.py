"""gnnfx under each policy, calibrated on the workload's own graph."""

from __future__ import annotations

from collections.abc import Callable

from workloads import Workload

import gnnfx
from peers.peer import Peer


def optimized(policy: str) -> Callable[[Workload], Peer]:
    """The peer `gnnfx-POLICY`."""

    def make(work: Workload) -> Peer:
        example = work.arguments(work.graph)
        module = gnnfx.optimize(work.model, policy, example, calibration=[example])
        return Peer(
            f"gnnfx-{policy}",
            f"gnnfx.optimize, policy {policy}",
            work.arguments,
            lambda a: module(*a),
            exact=policy == "fp32",
            extra={"report": module.report.to_dict()},
        )

    return make
