"""gnnfx under each policy, calibrated on the workload's own graph, and on small ones tuned to it.

Where eager may not fit, the example and the calibration are a graph a sixteenth as large:
`optimize` runs the model it is given to compare answers.
"""

from __future__ import annotations

from collections.abc import Callable

from workloads import Workload

import gnnfx
from peers.peer import Peer

# Of more, the first integers cost nothing that could be measured.
_MANY_EDGES = 100_000


def optimized(policy: str) -> Callable[[Workload], Peer]:
    """The peer `gnnfx-POLICY`."""

    def make(work: Workload) -> Peer:
        example = work.arguments(work.small or work.graph)
        small = work.edges < _MANY_EDGES
        module = gnnfx.optimize(work.model, policy, example, calibration=[example], tune=small)
        return Peer(
            f"gnnfx-{policy}",
            f"gnnfx.optimize, policy {policy}{', tune=True' if small else ''}",
            work.arguments,
            lambda a: module(*a),
            exact=policy == "fp32",
            extra={"report": module.report.to_dict()},
            module=module,
        )

    return make
