"""gnnfx: a compiler for trained graph neural networks.

opt = gnnfx.optimize(model, "int8", (x, edge_index), calibration=[(x, edge_index)])
opt(x, edge_index)
"""

from gnnfx import errors
from gnnfx.api import optimize
from gnnfx.backend.module import OptimizedModule
from gnnfx.policy import Policy, Prune, Quantize
from gnnfx.pruner import Pruner
from gnnfx.report import Report

__all__ = [
    "OptimizedModule",
    "Policy",
    "Prune",
    "Pruner",
    "Quantize",
    "Report",
    "errors",
    "optimize",
]
__version__ = "0.1.0"
