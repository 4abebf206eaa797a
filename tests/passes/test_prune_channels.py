"""prune-channels: what shrinks with a channel, that values survive, and what must stay."""

from __future__ import annotations

import pytest
import torch

from gnnfx.ir.program import Program
from gnnfx.ir.text import dump, parse
from gnnfx.ir.verify import verify
from gnnfx.pass_manager import PassContext
from gnnfx.passes.prune_channels import PruneChannels
from gnnfx.pipeline import float_passes
from gnnfx.policy import Policy, Prune
from gnnfx.pruning.groups import find_groups
from gnnfx.pruning.masks import unit_masks
from tests.passes.rewriting import check_values, edges

PRUNE = Policy(prune=Prune())

TWO_LAYERS = """\
program two(x: f32[N, 3], src: i64[E], dst: i64[E])
  w: f32[4, 3] = param('w')
  b: f32[4] = param('b')
  v: f32[2, 4] = param('v')
  n: int[N] = aten.sym_size.int(x, 0)
  h: f32[N, 4] = aten.linear.default(x, w, b)  # one
  m: f32[E, 4] = gather(h, src)  # one
  s: f32[N, 4] = scatter(m, dst, n, 'sum')  # one
  r: f32[N, 4] = aten.relu.default(s)
  y: f32[N, 2] = aten.linear.default(r, v)  # two
  return (y,)
"""
TWO_LAYERS_PRUNED = """\
program two(x: f32[N, 3], src: i64[E], dst: i64[E])
  w: f32[2, 3] = param('w')
  b: f32[2] = param('b')
  v: f32[2, 2] = param('v')
  n: int[N] = aten.sym_size.int(x, 0)
  h: f32[N, 2] = aten.linear.default(x, w, b)  # one
  m: f32[E, 2] = gather(h, src)  # one
  s: f32[N, 2] = scatter(m, dst, n, 'sum')  # one
  r: f32[N, 2] = aten.relu.default(s)
  y: f32[N, 2] = aten.linear.default(r, v)  # two
  return (y,)
"""
HEADS = """\
program heads(x: f32[N, 3], src: i64[E], dst: i64[E])
  w: f32[6, 3] = param('w')
  a: f32[1, 2, 3] = param('a')
  v: f32[2, 6] = param('v')
  h: f32[N, 6] = aten.linear.default(x, w)
  g: f32[N, 2, 3] = aten.view.default(h, [-1, 2, 3])
  q: f32[N, 2, 3] = aten.mul.Tensor(g, a)
  c: f32[N, 2] = aten.sum.dim_IntList(q, [-1])
  u: f32[N, 2, 1] = aten.unsqueeze.default(c, -1)
  p: f32[N, 2, 3] = aten.mul.Tensor(g, u)
  f: f32[N, 6] = aten.view.default(p, [-1, 6])
  y: f32[N, 2] = aten.linear.default(f, v)
  return (y,)
"""


def linear_net(body: str, width: int = 4, extra: str = "") -> str:
    """A linear layer that makes `h`, `body`, and a linear layer of `z`, which is `width` wide."""
    return (
        "program net(x: f32[N, 3], src: i64[E], dst: i64[E])\n"
        "  w: f32[4, 3] = param('w')\n  b: f32[4] = param('b')\n"
        f"  v: f32[2, {width}] = param('v')\n{extra}"
        "  n: int[N] = aten.sym_size.int(x, 0)\n"
        "  h: f32[N, 4] = aten.linear.default(x, w, b)\n"
        f"{body}"
        "  y: f32[N, 2] = aten.linear.default(z, v)\n  return (y,)\n"
    )


FOLLOWED = {
    "residual": linear_net(
        "  i: f32[N, 4] = aten.linear.default(h, u)\n  z: f32[N, 4] = aten.add.Tensor(h, i)\n",
        extra="  u: f32[4, 4] = param('u')\n",
    ),
    "concatenation": linear_net(
        "  i: f32[N, 5] = aten.linear.default(h, u)\n"
        "  z: f32[N, 13] = aten.cat.default([h, i, h], 1)\n",
        width=13,
        extra="  u: f32[5, 4] = param('u')\n",
    ),
    "mean-of-channels": linear_net(
        "  m: f32[N, 1] = aten.mean.dim(h, [1], True)\n  z: f32[N, 4] = aten.mul.Tensor(h, m)\n"
    ),
    "layer-norm": linear_net(
        "  z: f32[N, 4] = aten.layer_norm.default(h, [4], g, c, 1e-05, False)\n",
        extra="  g: f32[4] = param('g')\n  c: f32[4] = param('c')\n",
    ),
    "layer-norm-without-scale": linear_net(
        "  z: f32[N, 4] = aten.layer_norm.default(h, [4], None, None, 1e-05, False)\n"
    ),
    "layer-norm-over-the-graph": linear_net(
        "  m: f32[] = aten.mean.default(h)\n  d: f32[N, 4] = aten.sub.Tensor(h, m)\n"
        "  s: f32[] = aten.std.default(d, False)\n  q: f32[N, 4] = aten.div.Tensor(d, s)\n"
        "  z: f32[N, 4] = aten.mul.Tensor(q, g)\n",
        extra="  g: f32[4] = param('g')\n",
    ),
    "rms-norm": linear_net(
        "  z: f32[N, 4] = aten.rms_norm.default(h, [4], g)\n", extra="  g: f32[4] = param('g')\n"
    ),
    "batch-norm": linear_net(
        "  t: (f32[N, 4], f32[0], f32[0]) = aten._native_batch_norm_legit_no_training.default("
        "h, g, c, mean, var, 0.1, 1e-05)\n  z: f32[N, 4] = getitem(t, 0)\n",
        extra="  g: f32[4] = param('g')\n  c: f32[4] = param('c')\n"
        "  mean: f32[4] = param('mean')\n  var: f32[4] = param('var')\n",
    ),
    "slices": linear_net(
        "  i: f32[N, 2] = aten.slice.Tensor(h, 1, 0, 2)\n"
        "  j: f32[N, 2] = aten.slice.Tensor(h, 1, 2, 9223372036854775807)\n"
        "  z: f32[N, 4] = aten.cat.default([j, i], 1)\n"
    ),
    "split": linear_net(
        "  t: (f32[N, 2], f32[N, 2]) = aten.split_with_sizes.default(h, [2, 2], 1)\n"
        "  i: f32[N, 2] = getitem(t, 0)\n  j: f32[N, 2] = getitem(t, 1)\n"
        "  z: f32[N, 2] = aten.mul.Tensor(i, j)\n",
        width=2,
    ),
    "chunks": linear_net(
        "  t: (f32[N, 2], f32[N, 2]) = aten.split.Tensor(h, 2, 1)\n"
        "  i: f32[N, 2] = getitem(t, 0)\n  j: f32[N, 2] = getitem(t, 1)\n"
        "  z: f32[N, 4] = aten.cat.default([j, i], 1)\n"
    ),
    "vector-norm": linear_net(
        "  m: f32[N, 1] = aten.linalg_vector_norm.default(h, 2.0, [-1], True)\n"
        "  e: f32[N, 4] = aten.expand.default(m, [n, 4])\n"
        "  z: f32[N, 4] = aten.mul.Tensor(h, e)\n"
    ),
    "sigmoid-before-a-linear-layer": linear_net("  z: f32[N, 4] = aten.sigmoid.default(h)\n"),
    "new-zeros": linear_net(
        "  o: f32[N, 4] = aten.new_zeros.default(h, [n, 4])\n"
        "  z: f32[N, 4] = aten.add.Tensor(h, o)\n"
    ),
    "shared-weight": linear_net(
        "  i: f32[N, 4] = aten.linear.default(h, u)\n  z: f32[N, 4] = aten.linear.default(i, u)\n",
        extra="  u: f32[4, 4] = param('u')\n",
    ),
    "matmul": linear_net(
        "  z: f32[N, 5] = aten.mm.default(h, u)\n", width=5, extra="  u: f32[4, 5] = param('u')\n"
    ),
    "stack-and-maximum": linear_net(
        "  i: f32[N, 4] = aten.relu.default(h)\n"
        "  t: f32[N, 4, 2] = aten.stack.default([h, i], -1)\n"
        "  z: f32[N, 4] = aten.amax.default(t, [-1])\n"
    ),
    "heads": HEADS,
    "two-layers": TWO_LAYERS,
}


def mask_half(program: Program) -> Program:
    """Zero the weights of every other unit of each group, in place."""
    if "var" in program.tensors:
        program.tensors["var"] = program.tensors["var"].abs()
    groups = find_groups(program)
    units = [
        unit
        for group in groups.removable()
        for number, unit in enumerate(group.units)
        if number % 2
    ]
    for name, mask in unit_masks(groups, units, program.tensors).items():
        program.tensors[name] = program.tensors[name] * mask
    return program


def prune(program: Program) -> tuple[Program, PassContext]:
    ctx = PassContext(PRUNE)
    after = PruneChannels().run(program, ctx)
    verify(after, program)
    return after, ctx


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, generator=generator), *edges(6, 20)


def test_zero_channels_are_removed_everywhere() -> None:
    after, ctx = prune(mask_half(parse(TWO_LAYERS)))
    assert dump(after) == TWO_LAYERS_PRUNED
    assert [remark.text for remark in ctx.remarks] == ["2 of 4 channels removed"]


@pytest.mark.parametrize("name", FOLLOWED)
def test_values_survive(name: str) -> None:
    before = mask_half(parse(FOLLOWED[name]))
    after, _ = prune(before)
    assert after is not before
    sizes = [sum(t.numel() for t in p.tensors.values()) for p in (before, after)]
    assert sizes[1] < sizes[0]
    check_values(before, after, *inputs(), rtol=1e-6)


def test_heads_and_channels_per_head_are_removed_separately() -> None:
    before = parse(HEADS)
    groups = {g.kind: g for g in find_groups(before).removable()}
    assert {kind: len(g.units) for kind, g in groups.items()} == {"heads": 2, "channels": 3}
    for name, mask in unit_masks(
        find_groups(before), [groups["heads"].units[0], groups["channels"].units[1]], before.tensors
    ).items():
        before.tensors[name] = before.tensors[name] * mask
    after, _ = prune(before)
    assert {n: tuple(t.shape) for n, t in after.tensors.items()} == {
        "w": (2, 3),
        "a": (1, 1, 2),
        "v": (2, 2),
    }
    check_values(before, after, *inputs(), rtol=1e-6)


def test_one_channel_always_stays() -> None:
    before = parse(TWO_LAYERS)
    before.tensors = {name: torch.zeros_like(t) for name, t in before.tensors.items()}
    after, ctx = prune(before)
    assert after.tensors["w"].shape == (1, 3)
    assert "3 of 4 channels removed" in ctx.remarks[0].text
    check_values(before, after, *inputs())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param("aten.softmax.int(h, 1)", "every channel enters softmax", id="softmax"),
        pytest.param("aten.flip.default(h, [1])", "aten.flip.default, which cannot", id="unknown"),
        pytest.param("aten.cumsum.default(h, 1)", "every channel enters cumsum", id="cumsum"),
    ],
)
def test_what_cannot_be_followed_stays(body: str, reason: str) -> None:
    before = parse(linear_net(f"  z: f32[N, 4] = {body}\n"))
    kept = [g.kept for g in find_groups(before) if len(g.units) == 4]
    assert kept
    assert all(k is not None and reason in k for k in kept)
    assert prune(mask_half(before))[0] is before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            "  s: f32[N, 4] = aten.sigmoid.default(h)\n"
            "  m: f32[N, 1] = aten.sum.dim_IntList(s, [1], True)\n"
            "  z: f32[N, 4] = aten.mul.Tensor(h, m)\n",
            "is reduced by sum, where a removed channel would not be zero",
            id="sum-of-sigmoids",
        ),
        pytest.param(
            "  m: f32[N, 1] = aten.amax.default(h, [1], True)\n"
            "  z: f32[N, 4] = aten.mul.Tensor(h, m)\n",
            "is reduced by amax, to which a zero is not nothing",
            id="maximum",
        ),
        pytest.param(
            "  z: f32[N, 4] = aten.group_norm.default(h, 2)\n",
            "is averaged by a group norm with the other channels of its group",
            id="group-norm",
        ),
        pytest.param(
            "  m: f32[] = aten.mean.default(h)\n  d: f32[N, 4] = aten.sub.Tensor(h, m)\n"
            "  s: f32[] = aten.std.default(d)\n  z: f32[N, 4] = aten.div.Tensor(d, s)\n",
            "is reduced by std, to which a zero is not nothing",
            id="unbiased-deviation",
        ),
        pytest.param(
            "  t: f32[4 * N] = aten.view.default(h, [-1])\n"
            "  z: f32[N, 4] = aten.view.default(t, [-1, 4])\n",
            "reshapes ['N', 4] to",
            id="reshape",
        ),
        pytest.param(
            "  s: f32[N, 4] = aten.squeeze.dim(h, 1)\n  z: f32[N, 4] = aten.relu.default(s)\n",
            "squeezed away if only one",
            id="squeeze",
        ),
        pytest.param(
            "  s: f32[N, 4] = aten.log_softmax.int(h, -1)\n  z: f32[N, 4] = aten.relu.default(s)\n",
            "every channel enters log_softmax",
            id="log-softmax",
        ),
    ],
)
def test_what_would_change_results_stays(body: str, reason: str) -> None:
    before = parse(linear_net(body))
    kept = [g.kept for g in find_groups(before) if g.name == "w" and len(g.units) == 4]
    assert kept
    assert reason in str(kept[0])


def test_channels_that_are_sliced_with_a_step_stay() -> None:
    text = linear_net(
        "  s: f32[N, 2] = aten.slice.Tensor(h, 1, 0, 4, 2)\n"
        "  z: f32[N, 4] = aten.cat.default([s, s], 1)\n"
    )
    kept = [g.kept for g in find_groups(parse(text)) if g.name == "w"]
    assert None not in kept
    assert "is sliced with a step" in kept


def test_a_channel_read_by_its_number_stays_and_its_number_follows() -> None:
    text = linear_net(
        "  s: f32[N] = aten.select.int(h, 1, 2)\n"
        "  u: f32[N, 1] = aten.unsqueeze.default(s, 1)\n"
        "  z: f32[N, 4] = aten.mul.Tensor(h, u)\n"
    )
    before = parse(text)
    groups = find_groups(before)
    assert [len(g.units) for g in groups if g.kept == "is read by its number"] == [1]
    before = mask_half(before)
    after, _ = prune(before)
    assert "aten.select.int(h, 1, 1)" in dump(after)
    check_values(before, after, *inputs(), rtol=1e-6)


def test_second_run_changes_nothing() -> None:
    once, _ = prune(mask_half(parse(TWO_LAYERS)))
    assert prune(once)[0] is once


def test_a_policy_that_prunes_nothing_leaves_zeros_alone() -> None:
    assert not any(isinstance(p, PruneChannels) for p in float_passes(Policy()))
    assert any(isinstance(p, PruneChannels) for p in float_passes(PRUNE))
