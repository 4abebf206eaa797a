"""gnnfx under each policy, calibrated on the workload's own graph.

Where eager may not fit, the example and the calibration are a graph a sixteenth as large:
`optimize` runs the model it is given to compare answers.
"""

from __future__ import annotations

from collections.abc import Callable

from workloads import Workload

import gnnfx
from peers.peer import Peer


def optimized(policy: str) -> Callable[[Workload], Peer]:
    """The peer `gnnfx-POLICY`."""

    def make(work: Workload) -> Peer:
        example = work.arguments(work.small or work.graph)
        module = gnnfx.optimize(work.model, policy, example, calibration=[example])
        return Peer(
            f"gnnfx-{policy}",
            f"gnnfx.optimize, policy {policy}",
            work.arguments,
            lambda a: module(*a),
            exact=policy == "fp32",
            extra={"report": module.report.to_dict()},
            module=module,
        )

    return make
