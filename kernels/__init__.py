"""Ops of gnnfx: one file an op with its reference, shape function, cost and samples.

Importing this package registers every op as `torch.ops.gnnfx.*`.
"""

if __name__ != "gnnfx.kernels":
    raise ImportError("this folder is the package gnnfx.kernels; install with `pip install -e .`")

from gnnfx.kernels import (
    aggregate,
    aggregate_edge_mlp,
    aggregate_gradient,
    aggregate_linear,
    aggregate_linear_sum,
    aggregate_many,
    aggregate_messages,
    attend_dot,
    attend_gat,
    attend_gatv2,
    compress,
    csr_linear,
    degree,
    dense_to_csr,
    dropout,
    float_linear,
    linear,
    linear_sum,
    message_passing,
    observe,
    quantize,
    seeded_dropout,
    softmax,
    sparse_linear,
    split_edges,
    structure,
    unpack,
    weight,
)

__all__ = [
    "aggregate",
    "aggregate_edge_mlp",
    "aggregate_gradient",
    "aggregate_linear",
    "aggregate_linear_sum",
    "aggregate_many",
    "aggregate_messages",
    "attend_dot",
    "attend_gat",
    "attend_gatv2",
    "compress",
    "csr_linear",
    "degree",
    "dense_to_csr",
    "dropout",
    "float_linear",
    "linear",
    "linear_sum",
    "message_passing",
    "observe",
    "quantize",
    "seeded_dropout",
    "softmax",
    "sparse_linear",
    "split_edges",
    "structure",
    "unpack",
    "weight",
]
