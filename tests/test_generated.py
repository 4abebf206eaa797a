"""Generated models on generated graphs: optimized, they compute what they computed before.

Layers of PyG and hand-written message passing in random stacks, on graphs with every ugly case.
A few run always; set GNNFX_EXAMPLES=1000 for many.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import gnnfx
from gnnfx.ir.text import dump, parse
from tests import generated
from tests.generated import Generated

EXAMPLES = int(os.environ.get("GNNFX_EXAMPLES", "12"))
_TOLERANCE = 1e-5  # relative to the largest output
_ROUNDING = 20.0  # where the model magnifies rounding: so many times its own error

BLOCKS = st.tuples(
    st.sampled_from([*generated.LAYERS, *generated.SPELLINGS]),
    st.sampled_from(list(generated.NORMS)),
    st.sampled_from(list(generated.ACTIVATIONS)),
    st.sampled_from(generated.JOINS),
)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _eager(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any] | None:
    """What the model itself gives, or None if it fails on this graph."""
    try:
        with torch.no_grad():
            return pytree.tree_leaves(model(*inputs))
    except Exception:  # whatever PyG raises on an ugly graph
        return None


def _assert_same(model: nn.Module, inputs: tuple[Tensor, ...], got: list[Any]) -> None:
    want = _eager(model, inputs)
    assert want is not None
    exact = _eager(copy.deepcopy(model).double(), tuple(map(_double, inputs)))
    for number, (old, new) in enumerate(zip(want, got, strict=True)):
        assert old.shape == new.shape, f"output {number}"
        if not old.is_floating_point():
            assert torch.equal(old, new), f"output {number}"
            continue
        assert torch.equal(old.isnan(), new.isnan()), f"output {number}: NaN elsewhere"
        finite = old.isfinite() & new.isfinite()
        assert torch.equal(old[~finite & ~old.isnan()], new[~finite & ~old.isnan()])
        old, new = old[finite], new[finite]
        scale = float(old.abs().max()) if old.numel() else 0.0
        worst = float((old - new).abs().max()) if old.numel() else 0.0
        if worst > _TOLERANCE * scale and exact is not None:
            judge = exact[number][finite]
            own = float((judge - old).abs().max())
            assert float((judge - new).abs().max()) <= _ROUNDING * own, (number, worst, scale, own)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=2),
    jump=st.sampled_from(generated.JUMPS),
    readout=st.sampled_from(generated.READOUTS),
    kinds=st.lists(st.sampled_from(generated.GRAPHS), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_optimized_equals_eager(
    blocks: list[tuple[str, str, str, str]], jump: str, readout: str, kinds: list[str], seed: int
) -> None:
    torch.manual_seed(seed)
    model = Generated(blocks, jump, readout).eval()
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point() and "avg_deg" not in key:
            buffer.uniform_(0.5, 1.5) if "var" in key else buffer.normal_()
    example = generated.graph("random", seed)
    if _eager(model, example) is None:
        return
    optimized = gnnfx.optimize(model, "fp32", example)
    if not optimized.report.kept:
        assert dump(parse(optimized.ir())) == optimized.ir()
    for kind, number in zip(["random", *kinds], range(seed, seed + 3), strict=True):
        inputs = generated.graph(kind, number)
        if _eager(model, inputs) is not None:
            _assert_same(model, inputs, pytree.tree_leaves(optimized(*inputs)))
