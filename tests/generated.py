"""Parts of random models, and random graphs with every ugly case, for whole-program tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric import utils

WIDTH, EDGE_WIDTH, RELATIONS = 8, 4, 3
_NN = WIDTH * WIDTH


class OnGraph(nn.Module):
    """Calls a layer with what it takes of a graph: 'w' weights, 'a' attributes, 't' types."""

    def __init__(self, layer: nn.Module, takes: str = "") -> None:
        super().__init__()
        self.layer, self.takes = layer, takes

    def forward(self, x: Tensor, edge_index: Tensor, attr: Tensor, kind: Tensor) -> Tensor:
        match self.takes:
            case "a":
                return self.layer(x, edge_index, edge_attr=attr)  # type: ignore[no-any-return]
            case "p":
                return self.layer(x, edge_index, attr.sigmoid())  # type: ignore[no-any-return]
            case "w":
                return self.layer(x, edge_index, attr[:, 0].abs())  # type: ignore[no-any-return]
            case "t":
                return self.layer(x, edge_index, kind)  # type: ignore[no-any-return]
            case "0":
                return self.layer(x, x, edge_index)  # type: ignore[no-any-return]
        return self.layer(x, edge_index)  # type: ignore[no-any-return]


def _mlp(inputs: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, WIDTH))


C = WIDTH
_DEGREES = torch.tensor([1, 4, 6, 3, 1])
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: OnGraph(pyg.GCNConv(C, C)),
    "gcn-weights": lambda: OnGraph(pyg.GCNConv(C, C, improved=True), "w"),
    "gcn-flow": lambda: OnGraph(pyg.GCNConv(C, C, flow="target_to_source")),
    "gcn-plain": lambda: OnGraph(pyg.GCNConv(C, C, add_self_loops=False)),
    "sage-mean": lambda: OnGraph(pyg.SAGEConv(C, C, normalize=True)),
    "sage-max": lambda: OnGraph(pyg.SAGEConv(C, C, aggr="max", project=True)),
    "sage-min": lambda: OnGraph(pyg.SAGEConv(C, C, aggr="min")),
    "sage-sum": lambda: OnGraph(pyg.SAGEConv(C, C, aggr="sum", flow="target_to_source")),
    "sage-mul": lambda: OnGraph(pyg.SAGEConv(C, C, aggr="mul")),
    "sage-std": lambda: OnGraph(pyg.SAGEConv(C, C, aggr="std")),
    "sage-var": lambda: OnGraph(pyg.SAGEConv(C, C, aggr="var")),
    "sage-softmax": lambda: OnGraph(
        pyg.SAGEConv(C, C, aggr="softmax", aggr_kwargs={"learn": True})
    ),
    "sage-multi": lambda: OnGraph(pyg.SAGEConv(C, C, aggr=["mean", "max", "std"])),
    "gat": lambda: OnGraph(pyg.GATConv(C, C // 2, heads=2)),
    "gat-edge": lambda: OnGraph(pyg.GATConv(C, C, heads=3, concat=False, edge_dim=EDGE_WIDTH), "a"),
    "gatv2": lambda: OnGraph(pyg.GATv2Conv(C, C // 4, heads=4, add_self_loops=False)),
    "gatv2-edge": lambda: OnGraph(pyg.GATv2Conv(C, C, edge_dim=EDGE_WIDTH), "a"),
    "gin": lambda: OnGraph(pyg.GINConv(_mlp(), train_eps=True)),
    "gine": lambda: OnGraph(pyg.GINEConv(_mlp(), edge_dim=EDGE_WIDTH), "a"),
    "pna": lambda: OnGraph(
        pyg.PNAConv(
            C,
            C,
            ["mean", "min", "max", "std"],
            ["identity", "amplification", "attenuation"],
            _DEGREES,
            edge_dim=EDGE_WIDTH,
        ),
        "a",
    ),
    "transformer": lambda: OnGraph(pyg.TransformerConv(C, C // 2, heads=2, beta=True)),
    "transformer-edge": lambda: OnGraph(
        pyg.TransformerConv(C, C, heads=2, concat=False, edge_dim=EDGE_WIDTH), "a"
    ),
    "edge": lambda: OnGraph(pyg.EdgeConv(_mlp(2 * C))),
    "res-gated": lambda: OnGraph(pyg.ResGatedGraphConv(C, C, edge_dim=EDGE_WIDTH), "a"),
    "cheb": lambda: OnGraph(pyg.ChebConv(C, C, 3)),
    "tag": lambda: OnGraph(pyg.TAGConv(C, C, K=2), "w"),
    "sg": lambda: OnGraph(pyg.SGConv(C, C, K=2)),
    "ssg": lambda: OnGraph(pyg.SSGConv(C, C, alpha=0.1, K=2)),
    "appnp": lambda: OnGraph(pyg.APPNP(2, 0.1)),
    "arma": lambda: OnGraph(pyg.ARMAConv(C, C, num_stacks=2, num_layers=2)),
    "gen": lambda: OnGraph(
        pyg.GENConv(C, C, aggr="softmax", learn_t=True, edge_dim=EDGE_WIDTH), "a"
    ),
    "gen-power": lambda: OnGraph(pyg.GENConv(C, C, aggr="powermean", learn_p=True)),
    "nn": lambda: OnGraph(pyg.NNConv(C, C, nn.Linear(EDGE_WIDTH, _NN), aggr="mean"), "a"),
    "gmm": lambda: OnGraph(pyg.GMMConv(C, C, dim=EDGE_WIDTH, kernel_size=2), "p"),
    "spline-free": lambda: OnGraph(pyg.FeaStConv(C, C, heads=2)),
    "cg": lambda: OnGraph(pyg.CGConv(C, dim=EDGE_WIDTH, batch_norm=True), "a"),
    "rgcn": lambda: OnGraph(pyg.RGCNConv(C, C, RELATIONS, num_bases=2), "t"),
    "fast-rgcn": lambda: OnGraph(pyg.FastRGCNConv(C, C, RELATIONS, aggr="mean"), "t"),
    "rgat": lambda: OnGraph(pyg.RGATConv(C, C, RELATIONS), "t"),
    "mf": lambda: OnGraph(pyg.MFConv(C, C, max_degree=3)),
    "le": lambda: OnGraph(pyg.LEConv(C, C), "w"),
    "film": lambda: OnGraph(pyg.FiLMConv(C, C, num_relations=RELATIONS), "t"),
    "cluster-gcn": lambda: OnGraph(pyg.ClusterGCNConv(C, C)),
    "graph": lambda: OnGraph(pyg.GraphConv(C, C, aggr="mean"), "w"),
    "gated-graph": lambda: OnGraph(pyg.GatedGraphConv(C, 2), "w"),
    "super-gat": lambda: OnGraph(pyg.SuperGATConv(C, C // 2, heads=2)),
    "agnn": lambda: OnGraph(pyg.AGNNConv()),
    "fa": lambda: OnGraph(pyg.FAConv(C), "0"),
    "gcn2": lambda: OnGraph(pyg.GCN2Conv(C, 0.2), "0"),
    "general": lambda: OnGraph(pyg.GeneralConv(C, C, attention=True, heads=2)),
    "egc": lambda: OnGraph(pyg.EGConv(C, C, ["sum", "max", "symnorm"], num_heads=2, num_bases=2)),
}


class HandWritten(nn.Module):
    """Message passing as people write it: one spelling of a sum, a softmax or a mean."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.lin, self.score = nn.Linear(C, C), nn.Linear(C, 1)

    def forward(self, x: Tensor, edge_index: Tensor, attr: Tensor, kind: Tensor) -> Tensor:
        h = self.lin(x)
        return SPELLINGS[self.spelling](self, h, edge_index[0], edge_index[1])

    def weigh(self, h: Tensor, src: Tensor, dst: Tensor, alpha: Tensor) -> Tensor:
        return torch.zeros_like(h).index_add_(0, dst, h[src] * alpha.view(-1, 1))

    def logits(self, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return self.score((h[src] + h[dst]).tanh()).squeeze(-1)  # type: ignore[no-any-return]


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.view(-1, 1).expand_as(like)


def _reduce(name: str, include: bool) -> Callable[..., Tensor]:
    def spelled(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        start = torch.zeros_like(h) if not include else h * 0.5
        messages = h[src]
        return start.scatter_reduce(0, _wide(dst, messages), messages, name, include_self=include)

    return spelled


def _softmax_max(eps: float) -> Callable[..., Tensor]:
    def spelled(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        a = m.logits(h, src, dst)
        high = a.new_full((h.size(0),), -1e9).scatter_reduce(0, dst, a, "amax")
        e = (a - high[dst]).exp()
        total = torch.zeros(h.size(0)).index_add(0, dst, e)
        return m.weigh(h, src, dst, e / (total[dst] + eps))

    return spelled


def _softmax_plain(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    e = m.logits(h, src, dst).exp()
    total = utils.scatter(e, dst, dim=0, dim_size=h.size(0), reduce="sum")
    return m.weigh(h, src, dst, e / total[dst])


def _softmax_eps_inside(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    a = m.logits(h, src, dst)
    high = utils.scatter(a, dst, dim=0, dim_size=h.size(0), reduce="max")
    e = torch.exp(a - high.index_select(0, dst))
    total = torch.zeros(h.size(0)).scatter_add(0, dst, e) + 1e-16
    return m.weigh(h, src, dst, e / total.index_select(0, dst))


def _mean(count: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def spelled(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        total = torch.zeros_like(h).index_add(0, dst, h.index_select(0, src))
        return total / count(dst, h.size(0)).clamp(min=1).view(-1, 1)

    return spelled


def _scatter(reduce: str) -> Callable[..., Tensor]:
    def spelled(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return utils.scatter(h[src], dst, 0, h.size(0), reduce)  # type: ignore[no-any-return]

    return spelled


def _segments(reduce: str) -> Callable[..., Tensor]:
    def spelled(m: HandWritten, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        order = dst.argsort(stable=True)
        rowptr = torch.searchsorted(dst[order], torch.arange(h.size(0) + 1))
        return utils.segment(h[src[order]], rowptr, reduce)  # type: ignore[no-any-return]

    return spelled


SPELLINGS: dict[str, Callable[[HandWritten, Tensor, Tensor, Tensor], Tensor]] = {
    "index-add": lambda m, h, src, dst: torch.zeros_like(h).index_add(0, dst, h[src]),
    "index-add-in-place": lambda m, h, src, dst: h.clone().index_add_(0, dst, h[src]),
    "scatter-add": lambda m, h, src, dst: torch.zeros_like(h).scatter_add(
        0, _wide(dst, h[src]), h.index_select(0, src)
    ),
    "index-put": lambda m, h, src, dst: torch.zeros_like(h).index_put((dst,), h[src], True),
    "gather-of-gather": lambda m, h, src, dst: utils.scatter(
        h[src][torch.arange(src.numel()).flip(0)], dst, 0, h.size(0), "sum"
    ),
    **{f"reduce-{r}": _reduce(r, False) for r in ("sum", "mean", "amax", "amin", "prod")},
    **{f"reduce-{r}-self": _reduce(r, True) for r in ("sum", "mean", "amax", "amin", "prod")},
    **{f"scatter-{r}": _scatter(r) for r in ("sum", "mean", "max", "min", "mul")},
    **{f"segment-{r}": _segments(r) for r in ("sum", "mean", "max", "min")},
    "softmax-pyg": lambda m, h, src, dst: m.weigh(
        h, src, dst, utils.softmax(m.logits(h, src, dst), dst, num_nodes=h.size(0))
    ),
    "softmax-plain": _softmax_plain,
    "softmax-max": _softmax_max(0.0),
    "softmax-max-eps": _softmax_max(1e-16),
    "softmax-eps-inside": _softmax_eps_inside,
    "mean-bincount": _mean(lambda dst, n: torch.bincount(dst, minlength=n)),
    "mean-scatter": _mean(lambda dst, n: utils.scatter(torch.ones(dst.numel()), dst, 0, n, "sum")),
    "mean-degree": _mean(lambda dst, n: utils.degree(dst, n)),
}

NORMS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(C),
    "pyg-batch": lambda: pyg.BatchNorm(C),
    "layer": lambda: nn.LayerNorm(C),
    "pyg-layer": lambda: pyg.LayerNorm(C, mode="node"),
    "graph": lambda: pyg.GraphNorm(C),
    "graph-size": lambda: pyg.GraphSizeNorm(),
    "instance": lambda: pyg.InstanceNorm(C, affine=True, track_running_stats=True),
    "pair": lambda: pyg.PairNorm(),
    "mean-subtraction": lambda: pyg.MeanSubtractionNorm(),
    "diff-group": lambda: pyg.DiffGroupNorm(C, groups=2),
    "message": lambda: pyg.MessageNorm(learn_scale=True),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu-in-place": lambda: nn.ReLU(inplace=True),
    "elu": nn.ELU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "prelu": nn.PReLU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}
JOINS = ("plain", "add", "cat", "gate", "again")
JUMPS = ("last", "cat", "max", "lstm-free-sum")
READOUTS = ("nodes", "sum", "mean", "max", "tuple", "dict")


class Block(nn.Module):
    """A layer, a norm and an activation, joined to what came before."""

    def __init__(self, layer: str, norm: str, activation: str, join: str) -> None:
        super().__init__()
        self.layer = HandWritten(layer) if layer in SPELLINGS else LAYERS[layer]()
        self.norm, self.act, self.join = NORMS[norm](), ACTIVATIONS[activation](), join
        self.mix = nn.Linear(2 * C, C)

    def forward(self, x: Tensor, edge_index: Tensor, attr: Tensor, kind: Tensor) -> Tensor:
        h = self.layer(x, edge_index, attr, kind)
        if self.join == "again":  # a shared layer
            h = self.layer(h.tanh(), edge_index, attr, kind)
        h = self.norm(x, h) if isinstance(self.norm, pyg.MessageNorm) else self.norm(h)
        h = self.act(h)
        match self.join:
            case "add":
                return h + x  # type: ignore[no-any-return]
            case "cat":
                return self.mix(torch.cat([x, h], dim=-1))  # type: ignore[no-any-return]
            case "gate":
                return h * self.mix(torch.cat([h, x], dim=-1)).sigmoid()  # type: ignore[no-any-return]
        return h  # type: ignore[no-any-return]


class Generated(nn.Module):
    """Blocks in a row, jumping knowledge, and a readout."""

    def __init__(self, blocks: list[tuple[str, str, str, str]], jump: str, readout: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(*block) for block in blocks)
        self.jump, self.readout = jump, readout
        self.jk = pyg.JumpingKnowledge(jump) if jump in ("cat", "max") else None
        self.out = nn.Linear(C * (len(blocks) if jump == "cat" else 1), 3)

    def forward(
        self, x: Tensor, edge_index: Tensor, attr: Tensor, kind: Tensor, batch: Tensor
    ) -> Any:
        seen = []
        for block in self.blocks:
            x = block(x, edge_index, attr, kind)
            seen.append(x)
        if self.jump == "lstm-free-sum":
            x = torch.stack(seen).sum(0)
        elif self.jk is not None:
            x = self.jk(seen)
        out = self.out(x)
        match self.readout:
            case "sum":
                return pyg.global_add_pool(out, batch, 5)
            case "mean":
                return pyg.global_mean_pool(out, batch)
            case "max":
                return pyg.global_max_pool(out, batch)
            case "tuple":
                return out, x.relu(), edge_index[0]
            case "dict":
                return {"nodes": out, "graphs": pyg.global_mean_pool(out, batch, 5)}
        return out


GRAPHS = (
    "random",
    "sorted",
    "no-edges",
    "one-node",
    "one-node-loops",
    "empty",
    "self-loops",
    "duplicates",
    "isolated",
    "hub",
    "as-many-nodes-as-edges",
)


def graph(kind: str, seed: int) -> tuple[Tensor, ...]:
    """(x, edge_index, edge_attr, edge_type, batch) of a kind; batch vectors skip some graphs."""
    g = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    nodes = {"one-node": 1, "one-node-loops": 1, "empty": 0}.get(kind, some(5, 40))
    edges = {"no-edges": 0, "one-node": 0, "empty": 0, "one-node-loops": 3}.get(kind, some(1, 150))
    edges = nodes if kind == "as-many-nodes-as-edges" else edges
    high = max(nodes // 2, 1) if kind == "isolated" else max(nodes, 1)
    edge_index = torch.randint(high, (2, edges), generator=g)
    match kind:
        case "sorted":
            edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
        case "self-loops":
            edge_index = torch.cat([edge_index, torch.arange(nodes).expand(2, -1)], dim=1)
        case "duplicates":
            edge_index = edge_index.repeat(1, 2)
        case "hub":
            edge_index[1] = 0
    count = edge_index.shape[1]
    batch = (torch.randint(3, (nodes,), generator=g) + 1).sort().values
    return (
        torch.randn(nodes, C, generator=g),
        edge_index,
        torch.randn(count, EDGE_WIDTH, generator=g),
        torch.randint(RELATIONS, (count,), generator=g),
        batch,
    )
