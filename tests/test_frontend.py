"""Ways to call a model, and models that cannot be captured whole, against eager PyG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.utils import (
    scatter,
    to_torch_coo_tensor,
    to_torch_csc_tensor,
    to_torch_csr_tensor,
)

import gnnfx
from gnnfx.frontend.example import TRACE_SIZES, resize
from gnnfx.frontend.trace import trace

N, E, SMALL = 20, 60, 7


def graph(seed: int, nodes: int = N, edges: int = E) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, 16, generator=generator)
    return x, torch.randint(nodes, (2, edges), generator=generator)


def compare(model: nn.Module, example: tuple[Any, ...], *calls: tuple[Any, ...]) -> Any:
    """Optimized and eager outputs are equal on the example and every other call."""
    model.eval()
    opt = gnnfx.optimize(model, "fp32", example)
    for call in (example, *calls):
        with torch.no_grad():
            got, want = pytree.tree_leaves(opt(*call)), pytree.tree_leaves(model(*call))
        for have, expected in zip(got, want, strict=True):
            torch.testing.assert_close(have, expected, rtol=1e-5, atol=1e-5)
    return opt


MATRICES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "csr": lambda e, n: to_torch_csr_tensor(e, size=(n, n)),
    "csc-transposed": lambda e, n: to_torch_csc_tensor(e, size=(n, n)).t(),
    "coo": lambda e, n: to_torch_coo_tensor(e, size=(n, n)),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: pyg.GCNConv(16, 8),
    "gat": lambda: pyg.GATConv(16, 4, heads=2),
    "sage": lambda: pyg.SAGEConv(16, 8),
    "sage-max": lambda: pyg.SAGEConv(16, 8, aggr="max"),
}


@pytest.mark.filterwarnings("ignore:Converting sparse tensor")
@pytest.mark.filterwarnings("ignore:Sparse ")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_sparse_adjacency(matrix: str, layer: str) -> None:
    calls = [(x, MATRICES[matrix](e, len(x))) for x, e in (graph(0), graph(1, 9, 25))]
    compare(LAYERS[layer](), *calls)


@pytest.mark.filterwarnings("ignore:Sparse ")
def test_sparse_features() -> None:
    """Beside an edge index, a sparse matrix holds features: nodes vary, channels do not."""
    calls = [(x.relu().to_sparse(), e) for x, e in (graph(0), graph(1, 33, 70))]
    for layer in (pyg.GCNConv(16, 8), pyg.EGConv(16, 8)):
        assert compare(layer, *calls).report.kept == ()


def test_edge_index_that_knows_its_order() -> None:
    x, e = graph(0)
    index = EdgeIndex(e, sparse_size=(N, N)).sort_by("col")[0]
    compare(pyg.GCN(16, 8, 2, 3), (x, index), (x, e))


def test_bipartite() -> None:
    x, e = graph(0)
    e = torch.stack([e[0], e[1] % SMALL])
    opt = compare(pyg.SAGEConv((16, 16), 8), ((x, torch.randn(SMALL, 16)), e))
    wrong = e.clone()
    wrong[1, 0] = SMALL
    with pytest.raises(gnnfx.errors.InputError, match=r"holds node 7; expected 0 <= node < 7"):
        opt((x, torch.randn(SMALL, 16)), wrong)
    high = e.clone()
    high[0, 0] = N - 1
    with pytest.raises(gnnfx.errors.InputError, match=r"holds node 19; expected 0 <= node < 19"):
        opt((x[: N - 1], torch.randn(SMALL, 16)), high)


class OnData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GCNConv(16, 8)

    def forward(self, data: Any) -> Tensor:
        x = self.conv(data.x, data.edge_index).relu()
        pooled: Tensor = pyg.global_mean_pool(x, data.batch)
        return pooled


def test_batch_of_small_graphs() -> None:
    def batch(*seeds: int) -> Any:
        return Batch.from_data_list(
            [Data(x=x, edge_index=e) for x, e in (graph(s, 5 + s, 9 + s) for s in seeds)]
        )

    compare(OnData(), (batch(0, 1, 2),), (batch(4, 3),))


def test_relations() -> None:
    types = torch.arange(E) % 3
    x, e = graph(0)
    compare(pyg.RGCNConv(16, 8, 3), (x, e, types), (*graph(1), types.flip(0)))
    compare(
        pyg.HEATConv(16, 16, 3, 3, 8, 5, 8, heads=2), (x, e, types[:N], types, torch.ones(E, 5))
    )


def test_heads_and_columns_of_equal_number() -> None:
    x, e = graph(0, 8, 16)
    compare(pyg.CGConv(16, batch_norm=True), (x, e), graph(1))


def test_what_cannot_be_captured_is_kept_and_the_rest_is_not() -> None:
    x, e = graph(0)
    example = (x, e[:, e[1].argsort()])
    opt = compare(pyg.SAGEConv(16, 8, aggr="lstm"), example)
    ((path, reason),) = opt.report.kept
    assert path == "aggr_module"
    assert "LSTMAggregation" in reason
    assert "kept" in opt.ir()
    assert "aten.linear" in opt.ir() or "linear" in opt.ir()


def test_a_model_of_which_nothing_can_be_captured_runs_as_it_is() -> None:
    x = torch.randint(0, 3, (N,))
    opt = compare(pyg.WLConv(), (x, graph(0)[1]))
    ((path, reason),) = opt.report.kept
    assert path == ""
    assert "WLConv" in reason
    assert "kept as it is" in str(opt.report)


class WritesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # Outside of training, dropout gives its input itself.
        return x.clone() + functional.dropout(x, 0.5, self.training).mul_(2)


class CountsItsCalls(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x


def test_a_model_that_writes_to_its_input_writes_to_it() -> None:
    x = torch.randn(5, 3)
    opt, (given, eagers) = gnnfx.optimize(WritesItsInput(), "fp32", (x.clone(),)), (x.clone(), x)
    torch.testing.assert_close(opt(given), WritesItsInput().eval()(eagers))
    torch.testing.assert_close(given, eagers)
    assert opt.report.kept == (("", "WritesItsInput writes to its argument 'x'"),)


def test_a_layer_that_writes_to_its_buffer_is_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 3), CountsItsCalls(), nn.Linear(3, 3))
    opt = compare(model, (torch.randn(5, 3),), (torch.randn(2, 3),))
    assert opt.report.kept == (("1", "CountsItsCalls writes to its buffer 'calls'"),)
    assert float(model.get_buffer("1.calls")) == 2


def test_the_length_of_a_vector_is_no_constant() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return x[: len(x)] / len(edge_index[0])

    compare(Counts(), graph(0), graph(1, 9, 25))


@pytest.mark.parametrize("layer", [pyg.GCNConv, pyg.SGConv])
def test_a_graph_that_a_layer_remembers_is_forgotten(layer: type[nn.Module]) -> None:
    (x, e), (y, f) = graph(0), graph(1)
    model = layer(16, 8, cached=True).eval()
    fresh = layer(16, 8, cached=False).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        model(x, e)
        opt = gnnfx.optimize(model, "fp32", (x, e))
        torch.testing.assert_close(opt(y, f), fresh(y, f), rtol=1e-5, atol=1e-5)


REDUCED = {
    "sum": ("sum", 0, True),
    "add": ("add", -2, True),
    "mean": ("mean", 0, True),
    "min": ("min", 0, True),
    "max": ("max", -2, True),
    "product": ("mul", 0, False),
    "columns": ("sum", 1, False),
}


class Reduces(nn.Module):
    """Rows, or columns, of edges by the node that each points to."""

    def __init__(self, reduce: str, dim: int) -> None:
        super().__init__()
        self.reduce, self.dim = reduce, dim

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        rows = x[src] if self.dim != 1 else x[src].t()
        found: Tensor = scatter(rows, dst, self.dim, x.shape[0], self.reduce)
        return found if self.dim != 1 else found.t() * 2


@pytest.mark.parametrize(("reduce", "dim", "one_op"), REDUCED.values(), ids=REDUCED)
def test_reductions_of_rows_are_captured_as_one_op(reduce: str, dim: int, one_op: bool) -> None:
    model = Reduces(reduce, dim)
    ops = [i.op for i in trace(model, graph(0)).program.instrs]
    assert ("scatter" in ops) is one_op
    assert any(op.startswith("aten.scatter") for op in ops) is not one_op
    compare(model, graph(0), graph(1, 9, 2), graph(2, 5, 0))


@pytest.mark.parametrize("kinds", [[0, 2], [0, 1, 2], [0, 1, 1]])
def test_types_of_few_edges_do_not_say_where_graphs_begin(kinds: list[int]) -> None:
    edges = len(kinds)
    model = pyg.RGCNConv(4, 4, 3).eval()
    call = (torch.randn(5, 4), torch.randint(5, (2, edges)), torch.tensor(kinds))
    inputs = dict(zip(("x", "edge_index", "edge_type"), call, strict=True))
    resized = resize(inputs, TRACE_SIZES)
    assert resized["edge_type"].shape[0] == resized["edge_index"].shape[1]
    torch.testing.assert_close(gnnfx.optimize(model, "fp32", call)(*call), model(*call))


class TwoHops(nn.Module):
    """Sums over the nodes that are two edges away, weighed by what lies between."""

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        adj = torch.sparse_coo_tensor(edge_index, weight, (x.shape[0], x.shape[0]))
        sums: Tensor = (adj @ adj) @ x
        return sums


def test_products_of_sparse_matrices() -> None:
    """Edges occur more than once; sizes of the product are each graph's own."""
    calls = [(*graph(seed, nodes, 90), torch.rand(90)) for seed, nodes in ((0, 20), (1, 9))]
    assert "= sparse_product(" in compare(TwoHops(), *calls).ir()
