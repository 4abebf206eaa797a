"""select-csr-linear: chosen by size and by what is left; dense products that stay are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gnnfx
from gnnfx import Prune, Pruner
from gnnfx.ir.program import Program
from gnnfx.ir.text import parse
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import PassContext
from gnnfx.passes.select_csr_linear import SelectCsrLinear
from tests.models import IN, graph
from tests.passes.rewriting import body, check_second_run, check_values

LINEAR = """\
program net(x: f32[N, 256])
  w: f32[256, 256] = param('w')
  b: f32[256] = param('b')
  y: f32[N, 256] = aten.linear.default(x, w, b)
  return (y,)
"""


def select(share: float, text: str = LINEAR) -> tuple[Program, Program, PassContext]:
    """The program before and after the pass, with a `share` of its weights left."""
    before, ctx = parse(text), PassContext()
    kept = torch.rand(before.tensors["w"].shape, generator=torch.Generator().manual_seed(0)) < share
    before.tensors["w"] = torch.randn(kept.shape) * kept
    after = SelectCsrLinear().run(before, ctx)
    if after is not before:
        verify(after, before)
    return before, after, ctx


@pytest.mark.parametrize("bias", [True, False])
def test_a_few_weights_run_sparse(bias: bool) -> None:
    before, after, ctx = select(0.1, LINEAR if bias else LINEAR.replace("(x, w, b)", "(x, w)"))
    assert body(after) == ["csr_linear"]
    assert "runs sparse, on the 10." in ctx.remarks[0].text
    check_values(before, after, torch.randn(130, 256))
    check_second_run(SelectCsrLinear(), after)


@pytest.mark.parametrize(
    ("share", "text", "reasons"),
    [
        pytest.param(0.4, LINEAR, ["runs dense, which is faster here"], id="many"),
        pytest.param(0.1, LINEAR.replace("256", "32"), ["runs dense"], id="small"),
        pytest.param(0.9, LINEAR, [], id="dense"),
    ],
)
def test_the_rest_stays_dense_and_says_why(share: float, text: str, reasons: list[str]) -> None:
    before, after, ctx = select(share, text)
    assert after is before
    assert len(ctx.remarks) == len(reasons)
    assert all(part in r.text for part, r in zip(reasons, ctx.remarks, strict=True))


class Wide(nn.Module):
    """One aggregation between layers wide enough to gain from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(IN, 256), nn.Linear(256, 256)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x).relu()
        sums = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        return self.last(sums.relu())  # type: ignore[no-any-return]


def test_a_pruned_model_runs_sparse_and_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Wide().eval(), graph(80, 100)
    pruner = Pruner(model, Prune(0.95, method="fine-grained"), inputs)
    pruner.step()
    optimized = gnnfx.optimize(pruner.remove(), "fp32", inputs)
    torch.testing.assert_close(optimized(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    done = " ".join(text for layer in optimized.report.layers for text in layer.done)
    assert "runs sparse" in done
    assert "95% of last.weight set to zero" in done
    gnnfx.save(optimized, tmp_path / "sparse.gnnfx")
    loaded = gnnfx.load(tmp_path / "sparse.gnnfx")
    assert torch.equal(loaded(*inputs), optimized(*inputs))
