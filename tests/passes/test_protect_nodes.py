"""protect-nodes: which observers learn the ranks of their rows, and why others do not."""

from __future__ import annotations

import pytest

from gnnfx.passes.protect_nodes import ProtectNodes
from gnnfx.policy import PRESETS
from tests.passes.rewriting import check_second_run, dump, rewrite

BEFORE = """\
program layer(x: f32[N, 8], edge_index: i64[2, E], batch: i64[N])
  n: int[N] = aten.sym_size.int(x, 0)
  s: i64[E] = aten.select.int(edge_index, 0, 0)
  d: i64[E] = aten.select.int(edge_index, 0, 1)
  c: (i32[N + 1], i32[E], i32[E]) = compress(s, d, n)
  p: i32[N + 1] = getitem(c, 0)
  q: i32[E] = getitem(c, 1)
  a: f32[N, 8] = observe(x, 'x')
  y: f32[N, 8] = aggregate(a, p, q)
  g: i32[8, 8] = aten.zeros.default([8, 8], dtype=torch.int32)
  return (y,)
"""


def test_observers_of_nodes_get_the_ranks() -> None:
    _, after, _ = rewrite(ProtectNodes(), BEFORE, PRESETS["int8-dq"])
    (rank,) = after.find("degree_cdf")
    (observe,) = after.find("observe")
    assert observe.args["rank"] == rank
    assert rank.args["edge_index"].name == "edge_index"
    # The batch vector is not known as one: nothing gathers or scatters by it here.
    assert rank.args["batch"] is None
    check_second_run(ProtectNodes(), after)


def test_a_batch_vector_separates_graphs() -> None:
    text = BEFORE.replace(
        "  return (y,)", "  z: f32[3, 8] = scatter(y, batch, 3, 'sum')\n  return (z,)"
    )
    _, after, _ = rewrite(ProtectNodes(), text, PRESETS["int8-dq"])
    (rank,) = after.find("degree_cdf")
    assert rank.args["batch"].name == "batch"


def test_edges_go_by_the_node_they_name() -> None:
    text = BEFORE.replace("  return (y,)", "  return (y, o)").replace(
        "  g: i32",
        "  m: f32[E, 8] = gather(x, s)\n  o: f32[E, 8] = observe(m, 'm', owner=s)\n  g: i32",
    )
    _, after, _ = rewrite(ProtectNodes(), text, PRESETS["int8-dq"])
    assert all(o.args["rank"] is not None for o in after.find("observe"))


UPDATE = """\
  u: f32[N, 8] = observe(y, 'u')  # convs.0.aggr_module
  h: f32[N, 8] = aten.linear.default(u, w)  # convs.0.nn.0
  v: f32[N, 8] = observe(h, 'v')  # convs.0.nn.0
  z: f32[N, 8] = aten.linear.default(v, w)  # convs.0.nn.1
  o: f32[N, 8] = observe(z, 'o')  # convs.0.nn.1
  l: f32[N, 8] = aten.linear.default(o, w)  # lin
"""


def test_a_layer_rounds_what_it_makes_of_its_own_sums_for_all_nodes() -> None:
    text = BEFORE.replace("edge_index: i64[2, E]", "edge_index: i64[2, E], w: f32[8, 8]").replace(
        "aggregate(a, p, q)\n", "aggregate(a, p, q)  # convs.0.aggr_module\n" + UPDATE
    )
    _, after, _ = rewrite(ProtectNodes(), text.replace("(y,)", "(l,)"), PRESETS["int8-dq"])
    ranked = {o.args["name"] for o in after.find("observe") if o.args["rank"] is not None}
    assert ranked == {"x", "o"}


@pytest.mark.parametrize(
    ("text", "policy", "reason"),
    [
        pytest.param(BEFORE, "int8", None, id="policy-protects-none"),
        pytest.param(
            BEFORE.replace("edge_index: i64[2, E]", "edge_index: i64[2, E], more: i64[2, M]"),
            "int8-dq",
            "one edge_index [2, E] among the inputs, found 2",
            id="two-edge-indices",
        ),
        pytest.param(
            BEFORE.replace("compress(s, d, n)", "compress(d, s, 7)")
            .replace("N + 1", "8")
            .replace("y: f32[N, 8]", "y: f32[7, 8]"),
            "int8-dq",
            "one kind of nodes",
            id="rows-unknown",
        ),
    ],
)
def test_leaves_alone_and_says_why(text: str, policy: str, reason: str | None) -> None:
    before, after, ctx = rewrite(ProtectNodes(), text, PRESETS[policy])
    assert dump(after) == dump(before)
    texts = [r.text for r in ctx.remarks]
    assert len(texts) == (reason is not None)
    assert all(reason is not None and reason in text for text in texts)
