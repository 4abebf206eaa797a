"""prune: what each method and criterion sets to zero, and what it says about the rest."""

from __future__ import annotations

import pytest
import torch

from gnnfx.errors import PolicyError
from gnnfx.ir.text import dump, parse
from gnnfx.pass_manager import PassContext
from gnnfx.passes.prune import Prune as PrunePass
from gnnfx.policy import Policy, Prune
from tests.passes.rewriting import edges
from tests.passes.test_prune_channels import HEADS, TWO_LAYERS, linear_net


def run(text: str, prune: Prune) -> tuple[dict[str, torch.Tensor], PassContext]:
    """The tensors after the pass; weights grow with the channel in `w`."""
    program, ctx = parse(text), PassContext(Policy(prune=prune))
    program.tensors = {name: torch.ones_like(t) for name, t in program.tensors.items()}
    program.tensors["w"] *= torch.arange(1.0, len(program.tensors["w"]) + 1)[:, None]
    ctx.example = (torch.randn(6, 3), *edges(6, 20))
    ctx.gradients = {name: 1 / tensor**2 for name, tensor in program.tensors.items()}
    before = dump(program)
    after = PrunePass().run(program, ctx)
    assert dump(after) == before, "masking changes values, not shapes"
    return after.tensors, ctx


@pytest.mark.parametrize(
    ("criterion", "gone"),
    [("l1", [0, 1]), ("l2", [0, 1]), ("taylor", [2, 3]), ("aggregation", [0, 1])],
)
def test_the_least_important_channels_go_with_all_that_belongs_to_them(
    criterion: str, gone: list[int]
) -> None:
    tensors, ctx = run(TWO_LAYERS, Prune(criterion=criterion))  # type: ignore[arg-type]
    stays = torch.ones(4, dtype=torch.bool)
    stays[gone] = False
    assert torch.equal(tensors["w"].bool(), stays[:, None].expand(4, 3))
    assert torch.equal(tensors["b"].bool(), stays)
    assert torch.equal(tensors["v"].bool(), stays.expand(2, 4))
    assert torch.equal(ctx.masks["v"], tensors["v"].bool())


def test_heads() -> None:
    tensors, _ = run(HEADS, Prune(units="heads"))
    assert tensors["w"].any(1).tolist() == [False] * 3 + [True] * 3
    assert tensors["a"].any(-1).tolist() == [[False, True]]


def test_fine_grained_takes_a_share_of_each_matrix() -> None:
    tensors, ctx = run(TWO_LAYERS, Prune(method="fine-grained", ratio=0.25))
    assert [int((tensors[n] == 0).sum()) for n in ("w", "b", "v")] == [3, 0, 2]
    assert "25% of w set to zero" in ctx.remarks[0].text


def test_global_compares_the_matrices() -> None:
    tensors, _ = run(TWO_LAYERS, Prune(method="global", ratio=0.5))
    # Ten of twenty go: the ones in w and in v are the smallest, those of w come first.
    assert [int((tensors[n] == 0).sum()) for n in ("w", "v")] == [3, 7]


def test_a_layer_with_its_own_ratio_does_not_compete() -> None:
    prune = Prune(method="global", ratio=0.5, overrides={"v": 0.0})
    tensors, _ = run(TWO_LAYERS, prune)
    assert [int((tensors[n] == 0).sum()) for n in ("w", "v")] == [6, 0]


@pytest.mark.parametrize(
    ("body", "criterion", "reason"),
    [
        pytest.param("aten.flip.default(h, [1])", "l2", "meets aten.flip.default", id="unknown"),
        pytest.param("aten.relu.default(h)", "batch-norm", "no batch norm scales", id="no-norm"),
        pytest.param("aten.relu.default(h)", "aggregation", "nothing that is agg", id="no-scatter"),
    ],
)
def test_groups_left_alone_have_a_reason(body: str, criterion: str, reason: str) -> None:
    program = parse(linear_net(f"  z: f32[N, 4] = {body}\n"))
    ctx = PassContext(Policy(prune=Prune(criterion=criterion)))  # type: ignore[arg-type]
    ctx.example = (torch.randn(6, 3), *edges(6, 20))
    with pytest.raises(PolicyError, match="would prune nothing"):
        PrunePass().run(program, ctx)
    assert any(reason in remark.text and not remark.done for remark in ctx.remarks)


def test_aggregation_needs_an_example() -> None:
    ctx = PassContext(Policy(prune=Prune(criterion="aggregation")))
    with pytest.raises(PolicyError, match="needs example_inputs with a graph to measure"):
        PrunePass().run(parse(TWO_LAYERS), ctx)


def test_a_ratio_of_zero_changes_nothing() -> None:
    program = parse(TWO_LAYERS)
    assert PrunePass().run(program, PassContext(Policy(prune=Prune(ratio=0.0)))) is program
