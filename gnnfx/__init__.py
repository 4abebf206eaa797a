"""gnnfx: a compiler for trained graph neural networks.

opt = gnnfx.optimize(model, "int8", (x, edge_index), calibration=[(x, edge_index)])
opt(x, edge_index)
"""

from gnnfx import errors
from gnnfx.api import optimize
from gnnfx.artifact import load, save
from gnnfx.backend.input_codes import InputCodes
from gnnfx.backend.module import OptimizedModule
from gnnfx.backend.prepared import PreparedModule
from gnnfx.bisect import bisect
from gnnfx.compress import Compressed, compress
from gnnfx.finetune import finetune
from gnnfx.policy import Bits, Policy, Prune, Quantize
from gnnfx.prepare import convert, prepare
from gnnfx.pruner import Pruner
from gnnfx.pruning.sparse_training import SparseTraining
from gnnfx.pruning.train_and_prune import Admm, Slr
from gnnfx.report import Report
from gnnfx.training_policy import Training

__all__ = [
    "Admm",
    "Bits",
    "Compressed",
    "InputCodes",
    "OptimizedModule",
    "Policy",
    "PreparedModule",
    "Prune",
    "Pruner",
    "Quantize",
    "Report",
    "Slr",
    "SparseTraining",
    "Training",
    "bisect",
    "compress",
    "convert",
    "errors",
    "finetune",
    "load",
    "optimize",
    "prepare",
    "save",
]
__version__ = "0.1.0"
