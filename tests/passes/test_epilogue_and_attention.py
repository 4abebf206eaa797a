"""fuse-epilogue and fuse-attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

import gnnfx
from gnnfx.passes.fuse_attention import FuseAttention
from gnnfx.passes.fuse_epilogue import FuseEpilogue
from tests.passes.rewriting import body, check_second_run, check_values, edges, rewrite

EPILOGUE = """\
program finish(x: f32[N, 8], rowptr: i32[N + 1], src: i32[E], r: f32[N, 8], c: f32[N])
  b: f32[8] = param('bias')
  e: f32[1] = param('eps')
  a: f32[N, 8] = aggregate(x, rowptr, src)
  s: f32[N, 8] = aten.mul.Tensor(e, x)
  t: f32[N, 8] = aten.add.Tensor(a, s)
  u: f32[N, 8] = aten.add.Tensor(t, b)
  v: f32[N, 8] = aten.add.Tensor(r, u)
  y: f32[N, 8] = aten.relu.default(v)
  return (y,)
"""


def _inputs() -> tuple[torch.Tensor, ...]:
    rowptr, by_dst, _ = torch.ops.gnnfx.compress(*edges(5, 17), 5)
    return torch.randn(5, 8), rowptr, by_dst, torch.randn(5, 8), torch.rand(5)


def test_self_term_bias_residual_and_relu_become_one_op() -> None:
    before, after, _ = rewrite(FuseEpilogue(), EPILOGUE)
    assert body(after) == ["aten.view.default", "aggregate"]
    args = next(after.find("aggregate")).args
    assert args["activation"] == "relu"
    assert None not in (args["self_weight"], args["bias"], args["residual"])
    check_values(before, after, *_inputs())
    check_second_run(FuseEpilogue(), after)


def test_a_row_scale_comes_first() -> None:
    text = EPILOGUE.replace("aten.mul.Tensor(e, x)", "aten.unsqueeze.default(c, 1)").replace(
        "s: f32[N, 8]", "s: f32[N, 1]"
    )
    text = text.replace("aten.add.Tensor(a, s)", "aten.mul.Tensor(a, s)")
    before, after, _ = rewrite(FuseEpilogue(), text)
    assert next(after.find("aggregate")).args["row_scale"].name == "c"
    check_values(before, after, *_inputs())


def test_a_value_that_others_read_is_not_absorbed() -> None:
    _, after, ctx = rewrite(FuseEpilogue(), EPILOGUE.replace("return (y,)", "return (y, v)"))
    assert "aten.relu.default" in body(after)
    assert any("is also used by" in r.text for r in ctx.remarks)


GAT = """\
program gat(x: f32[N, 2, 4], s: f32[N, 2], t: f32[N, 2], i: i64[E], j: i64[E], f: f32[E, 2])
  n: int[N] = aten.sym_size.int(x, 0)
  k: (i32[N + 1], i32[E], i32[E]) = compress(i, j, n)
  rowptr: i32[N + 1] = getitem(k, 0)
  src: i32[E] = getitem(k, 1)
  perm: i32[E] = getitem(k, 2)
  dst: i64[E] = gather(j, perm)
  g: f32[E, 2] = gather(s, src)
  h: f32[E, 2] = gather(t, dst)
  a: f32[E, 2] = aten.add.Tensor(g, h)
  o: f32[E, 2] = gather(f, perm)
  l: f32[E, 2] = aten.leaky_relu.default(a, 0.1)
  w: f32[E, 2] = segment_softmax(l, rowptr)
  y: f32[N, 2, 4] = aggregate(x, rowptr, src, w)
  return (y,)
"""


@pytest.mark.parametrize("edge_term", [False, True])
def test_gat_becomes_one_op(edge_term: bool) -> None:
    text = GAT
    if edge_term:
        text = GAT.replace("  l: f32", "  b: f32[E, 2] = aten.add.Tensor(a, o)\n  l: f32")
        text = text.replace("leaky_relu.default(a", "leaky_relu.default(b")
    before, after, _ = rewrite(FuseAttention(), text)
    attend = next(after.find("attend_gat"))
    assert (attend.args["a_edge"] is not None) is edge_term
    assert attend.args["negative_slope"] == 0.1
    values = torch.randn(5, 2, 4), torch.randn(5, 2), torch.randn(5, 2)
    check_values(before, after, *values, *edges(5, 17), torch.randn(17, 2))
    check_second_run(FuseAttention(), after)


def test_gatv2_becomes_one_op() -> None:
    text = """\
program gatv2(x: f32[N, 2, 4], z: f32[N, 2, 4], i: i64[E], j: i64[E])
  t: f32[1, 2, 4] = param('att')
  n: int[N] = aten.sym_size.int(x, 0)
  k: (i32[N + 1], i32[E], i32[E]) = compress(i, j, n)
  rowptr: i32[N + 1] = getitem(k, 0)
  src: i32[E] = getitem(k, 1)
  perm: i32[E] = getitem(k, 2)
  dst: i64[E] = gather(j, perm)
  g: f32[E, 2, 4] = gather(x, src)
  h: f32[E, 2, 4] = gather(z, dst)
  a: f32[E, 2, 4] = aten.add.Tensor(h, g)
  l: f32[E, 2, 4] = aten.leaky_relu.default(a, 0.2)
  m: f32[E, 2, 4] = aten.mul.Tensor(l, t)
  s: f32[E, 2] = aten.sum.dim_IntList(m, [-1])
  w: f32[E, 2] = segment_softmax(s, rowptr)
  y: f32[N, 2, 4] = aggregate(x, rowptr, src, w)
  return (y,)
"""
    before, after, _ = rewrite(FuseAttention(), text)
    assert "attend_gatv2" in body(after)
    check_values(before, after, torch.randn(5, 2, 4), torch.randn(5, 2, 4), *edges(5, 17))


def test_scores_of_edges_need_no_destination() -> None:
    before, after, _ = rewrite(FuseAttention(), GAT.replace("gather(t, dst)", "gather(t, src)"))
    assert "attend_gat" in body(after)
    values = torch.randn(5, 2, 4), torch.randn(5, 2), torch.randn(5, 2), *edges(5, 17)
    check_values(before, after, *values, torch.randn(17, 2))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param("leaky_relu.default(a, 0.1)", "tanh.default(a)", "no known score", id="score"),
        pytest.param("gather(s, src)", "gather(s, dst)", "lacks", id="no-source"),
        pytest.param("rowptr, src, w)", "rowptr, src, w, 'mean')", "sum per head", id="mean"),
    ],
)
def test_other_attention_stays_and_says_why(old: str, new: str, reason: str) -> None:
    before, after, ctx = rewrite(FuseAttention(), GAT.replace(old, new))
    assert after is before
    assert reason in ctx.remarks[0].text


DOT = """\
program dot(q: f32[N, 2, 4], k: f32[N, 2, 4], v: f32[N, 2, 4], i: i64[E], j: i64[E])
  n: int[N] = aten.sym_size.int(q, 0)
  c: (i32[N + 1], i32[E], i32[E]) = compress(i, j, n)
  rowptr: i32[N + 1] = getitem(c, 0)
  src: i32[E] = getitem(c, 1)
  perm: i32[E] = getitem(c, 2)
  dst: i64[E] = gather(j, perm)
  g: f32[E, 2, 4] = gather(q, dst)
  h: f32[E, 2, 4] = gather(k, src)
  m: f32[E, 2, 4] = aten.mul.Tensor(g, h)
  s: f32[E, 2] = aten.sum.dim_IntList(m, [-1])
  l: f32[E, 2] = aten.div.Tensor(s, 2.0)
  w: f32[E, 2] = segment_softmax(l, rowptr)
  a: f32[N, 2, 4] = aggregate(v, rowptr, src, w)
  y: f32[N, 8] = aten.view.default(a, [-1, 8])
  return (y,)
"""


@pytest.mark.parametrize("mean", [False, True])
def test_dot_product_attention_joins_or_averages_its_heads(mean: bool) -> None:
    text = DOT
    if mean:
        text = DOT.replace(
            "y: f32[N, 8] = aten.view.default(a, [-1, 8])", "y: f32[N, 4] = aten.mean.dim(a, [1])"
        )
    before, after, _ = rewrite(FuseAttention(), text)
    attend = next(after.find("attend_dot"))
    assert (attend.args["score_scale"], attend.args["mean_heads"]) == (0.5, mean)
    assert not {"aggregate", "aten.view.default", "aten.mean.dim"} & set(body(after))
    check_values(before, after, *(torch.randn(5, 2, 4) for _ in range(3)), *edges(5, 17))
    check_second_run(FuseAttention(), after)


@pytest.mark.parametrize("scaled", ["mul.Tensor(b, s)", "mul.Tensor(s, b)", "div.Tensor(s, b)"])
def test_a_parameter_scales_scores(scaled: str) -> None:
    text = DOT.replace("div.Tensor(s, 2.0)", scaled)
    text = text.replace("  n: int", "  b: f32[1] = param('beta')\n  n: int")
    before, after, _ = rewrite(FuseAttention(), text)
    assert not {"aggregate", "segment_softmax"} & set(body(after))
    check_values(before, after, *(torch.randn(5, 2, 4) for _ in range(3)), *edges(5, 17))


def test_a_single_head_needs_no_axis() -> None:
    text = (
        DOT.replace(", 2, 4]", ", 8]")
        .replace("[E, 2]", "[E]")
        .replace("= aten.view.default(a, [-1, 8])", "= aten.relu.default(a)")
    )
    before, after, _ = rewrite(FuseAttention(), text)
    assert "attend_dot" in body(after)
    check_values(before, after, *(torch.randn(5, 8) for _ in range(3)), *edges(5, 17))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param("gather(q, dst)", "gather(q, src)", "a destination's row", id="sources"),
        pytest.param("m, [-1])", "m, [-2])", "over the channels", id="heads"),
    ],
)
def test_other_products_stay_and_say_why(old: str, new: str, reason: str) -> None:
    text = DOT.replace(old, new).replace("[-1, 8]", "[-1, 8]")
    if "-2" in new:
        text = text.replace("[N, 2, 4]", "[N, 4, 4]").replace("[E, 2, 4]", "[E, 4, 4]")
        text = text.replace("f32[E, 2]", "f32[E, 4]").replace("y: f32[N, 8]", "y: f32[N, 16]")
        text = text.replace("[-1, 8]", "[-1, 16]")
    before, after, ctx = rewrite(FuseAttention(), text)
    assert after is before
    assert reason in ctx.remarks[0].text


def test_attention_finishes_its_rows() -> None:
    text = """\
program finish(x: f32[N, 2, 4], s: f32[N, 2], rowptr: i32[N + 1], src: i32[E], r: f32[N, 8])
  b: f32[8] = param('bias')
  a: f32[N, 8] = attend_gat(x, s, s, rowptr, src)
  u: f32[N, 8] = aten.add.Tensor(a, b)
  v: f32[N, 8] = aten.add.Tensor(u, r)
  y: f32[N, 8] = aten.elu.default(v)
  return (y,)
"""
    before, after, _ = rewrite(FuseEpilogue(), text)
    assert body(after) == ["attend_gat"]
    assert next(after.find("attend_gat")).args["activation"] == "elu"
    rowptr, src, _ = torch.ops.gnnfx.compress(*edges(5, 17), 5)
    values = torch.randn(5, 2, 4), torch.randn(5, 2), rowptr, src, torch.randn(5, 8)
    check_values(before, after, *values)


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize(
    ("layer", "op", "edge_dim"),
    [
        (GATConv, "attend_gat", None),
        (GATConv, "attend_gat", 5),
        (GATv2Conv, "attend_gatv2", None),
        (GATv2Conv, "attend_gatv2", 5),
        (TransformerConv, "attend_dot", None),
        (TransformerConv, "attend_dot", 5),
    ],
)
def test_layers_with_one_head(
    layer: type[nn.Module], op: str, edge_dim: int | None, concat: bool
) -> None:
    torch.manual_seed(0)
    model: Any = layer(24, 6, heads=1, concat=concat, edge_dim=edge_dim).eval()
    args = [torch.randn(50, 24), torch.randint(50, (2, 300))]
    if edge_dim is not None:
        args.append(torch.randn(300, edge_dim))
    optimized = gnnfx.optimize(model, "fp32", tuple(args))
    assert f" {op}(" in optimized.ir()
    with torch.no_grad():
        torch.testing.assert_close(optimized(*args), model(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [5, 40], ids=["few", "many"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("layer", "layers"), [(GATv2Conv, 2), (TransformerConv, 4)])
def test_rows_of_a_few_features_of_edges_are_made_where_they_are_read(
    layer: type[nn.Module], layers: int, heads: int, features: int
) -> None:
    model: Any = layer(24, 6, heads=heads, edge_dim=features).eval()
    args = torch.randn(50, 24), torch.randint(50, (2, 300)), torch.randn(300, features)
    optimized = gnnfx.optimize(model, "fp32", args)
    # Without that of edges, unless there are as many features as make rows of their own worthwhile.
    assert optimized.ir().count("= linear(") == layers + (features > 32)
    small = gnnfx.optimize(model, "int8", args, calibration=[args])
    with torch.no_grad():
        want = model(*args)
        torch.testing.assert_close(optimized(*args), want, rtol=1e-5, atol=1e-5)
        assert float((small(*args) - want).abs().max()) < 0.02 * float(want.abs().max())
