"""All ops on a real GPU: results of the reference, and no synchronization with the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gnnfx.kernels  # noqa: F401
from gnnfx.ir.op import OpDef, all_ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

OPS = [pytest.param(op, id=op.name) for op in all_ops()]


def _on_cpu(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)


@pytest.mark.parametrize("op", OPS)
def test_matches_reference(op: OpDef, poisoned_empty: None, assert_same: Any) -> None:
    selected = set()
    for number, args in enumerate(op.samples("cuda")):
        selected.add(op.select(*args).name)
        got = op.torch_op(*args)
        torch.cuda.synchronize()
        assert_same(got, op.reference(*_on_cpu(args)), f"{op.name} sample {number}")
    wanted = {impl.name for impl in op.impls if impl.device == "cuda"}
    assert wanted <= selected, f"no sample exercises {wanted - selected}"


@pytest.mark.parametrize("op", OPS)
def test_is_captured_by_a_cuda_graph(op: OpDef, assert_same: Any) -> None:
    """A capture fails at the first copy to the host, so the op reads no value on the host."""
    for args in list(op.samples("cuda"))[:4]:
        expected = op.torch_op(*args)  # compiles the kernel
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = op.torch_op(*args)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(got, expected, op.name)
