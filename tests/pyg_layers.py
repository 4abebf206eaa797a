"""One call of every layer and model that `torch_geometric.nn` has, and why some have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

F, H = 8, 6  # input and output channels
TYPES = 3
# What torch.export captures differs: it learned one layer of transformers and forgot another.
_SINCE_2_15 = torch.__version__ >= "2.15"


@dataclass(frozen=True)
class Graph:
    """x [N, F], edge_index [2, E] sorted by target, and what layers want besides."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    graphs: int

    @staticmethod
    def random(seed: int, nodes: int, edges: int, graphs: int = 2) -> Graph:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(nodes, F, generator=generator)
        edge_index = torch.randint(nodes, (2, edges), generator=generator)
        edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
        batch = torch.arange(nodes) * graphs // nodes
        return Graph(x, edge_index, batch, graphs)

    @property
    def weight(self) -> Tensor:
        return self._edges(1, seed=1).sigmoid().view(-1)

    @property
    def attr(self) -> Tensor:
        return self._edges(3, seed=2)

    @property
    def pseudo(self) -> Tensor:
        return self._edges(2, seed=3).sigmoid()

    @property
    def edge_type(self) -> Tensor:
        return torch.arange(self.edge_index.shape[1]) % TYPES

    @property
    def node_type(self) -> Tensor:
        return torch.arange(len(self.x)) % TYPES

    @property
    def pos(self) -> Tensor:
        return torch.randn(len(self.x), 3, generator=torch.Generator().manual_seed(4))

    @property
    def atoms(self) -> Tensor:
        return torch.arange(len(self.x)) % 5 + 1

    @property
    def dense(self) -> tuple[Tensor, Tensor]:
        """Features [2, N, F] and adjacency [2, N, N] of two graphs of equal size."""
        nodes = len(self.x)
        adj = torch.zeros(nodes, nodes)
        adj[self.edge_index[0], self.edge_index[1]] = 1.0
        return torch.stack([self.x, self.x.flip(0)]), torch.stack([adj, adj.t()])

    def _edges(self, channels: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.edge_index.shape[1], channels, generator=generator)


@dataclass(frozen=True)
class Layer:
    """A layer or model, and the arguments of a call on a graph.

    kept: the layer, or a part of it, runs as PyG wrote it, and the report says so.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[Graph], tuple[Any, ...]]
    kept: bool = False


def _plain(g: Graph) -> tuple[Any, ...]:
    return g.x, g.edge_index


def _weighted(g: Graph) -> tuple[Any, ...]:
    return g.x, g.edge_index, g.weight


def _with_attr(g: Graph) -> tuple[Any, ...]:
    return g.x, g.edge_index, g.attr


def _typed(g: Graph) -> tuple[Any, ...]:
    return g.x, g.edge_index, g.edge_type


def _points(g: Graph) -> tuple[Any, ...]:
    return g.x, g.pos, g.edge_index


def _normals(g: Graph) -> tuple[Any, ...]:
    return g.x, g.pos, torch.nn.functional.normalize(g.pos.flip(1)), g.edge_index


def _sets(g: Graph) -> tuple[Any, ...]:
    return g.x, g.batch


def _batched(g: Graph) -> tuple[Any, ...]:
    return g.x, g.edge_index, None, g.batch


def _pooled(g: Graph) -> tuple[Any, ...]:
    return g.x, g.edge_index, g.batch


def _close_by(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of points of one graph that are less than 2 apart, and how far."""
    distance = (pos[:, None] - pos[None]).norm(dim=-1)
    same = batch[:, None] == batch[None]
    edge_index = ((distance < 2.0) & same & (distance > 0)).nonzero().t()
    return edge_index, distance[edge_index[0], edge_index[1]]


def _hetero(g: Graph) -> tuple[Any, ...]:
    edges = {("a", "to", "b"): g.edge_index, ("b", "of", "a"): g.edge_index.flip(0)}
    return {"a": g.x, "b": g.x.flip(0)}, edges


_METADATA = (["a", "b"], [("a", "to", "b"), ("b", "of", "a")])
_DEGREES = torch.tensor([0, 4, 9, 5, 2])


def _mlp(inputs: int, outputs: int = H) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 10), nn.ReLU(), nn.Linear(10, outputs))


CONV: dict[str, Layer] = {
    "AGNNConv": Layer(lambda: pyg.AGNNConv(), _plain),
    "APPNP": Layer(lambda: pyg.APPNP(3, 0.1), _weighted),
    "ARMAConv": Layer(lambda: pyg.ARMAConv(F, H, num_stacks=2, num_layers=2), _weighted),
    "AntiSymmetricConv": Layer(lambda: pyg.AntiSymmetricConv(F, num_iters=2), _plain),
    "CGConv": Layer(lambda: pyg.CGConv(F, dim=3, batch_norm=True), _with_attr),
    "ChebConv": Layer(lambda: pyg.ChebConv(F, H, K=3), _weighted),
    "ClusterGCNConv": Layer(lambda: pyg.ClusterGCNConv(F, H, diag_lambda=1.0), _plain),
    "DNAConv": Layer(
        lambda: pyg.DNAConv(F, heads=2, groups=2),
        lambda g: (torch.stack([g.x, g.x.flip(0)], 1), g.edge_index),
    ),
    "DirGNNConv": Layer(lambda: pyg.DirGNNConv(pyg.SAGEConv(F, H)), _plain),
    "EGConv": Layer(lambda: pyg.EGConv(F, H, ["sum", "std"], num_heads=2), _plain),
    "EdgeConv": Layer(lambda: pyg.EdgeConv(_mlp(2 * F)), _plain),
    "FAConv": Layer(lambda: pyg.FAConv(F), lambda g: (g.x, g.x.flip(0), g.edge_index)),
    "FastRGCNConv": Layer(lambda: pyg.FastRGCNConv(F, H, TYPES, num_bases=2), _typed),
    "FeaStConv": Layer(lambda: pyg.FeaStConv(F, H, heads=2), _plain),
    "FiLMConv": Layer(lambda: pyg.FiLMConv(F, H, num_relations=TYPES), _typed),
    "GATConv": Layer(lambda: pyg.GATConv(F, H, heads=2, edge_dim=3), _with_attr),
    "GATv2Conv": Layer(lambda: pyg.GATv2Conv(F, H, heads=2, edge_dim=3), _with_attr),
    "GCN2Conv": Layer(
        lambda: pyg.GCN2Conv(F, 0.5, 1.0, 2), lambda g: (g.x, g.x.flip(0), g.edge_index, g.weight)
    ),
    "GCNConv": Layer(lambda: pyg.GCNConv(F, H), _weighted),
    "GENConv": Layer(lambda: pyg.GENConv(F, H, learn_t=True, edge_dim=3), _with_attr),
    "GINConv": Layer(lambda: pyg.GINConv(_mlp(F), train_eps=True), _plain),
    "GINEConv": Layer(lambda: pyg.GINEConv(_mlp(F), edge_dim=3), _with_attr),
    "GMMConv": Layer(
        lambda: pyg.GMMConv(F, H, dim=2, kernel_size=4), lambda g: (g.x, g.edge_index, g.pseudo)
    ),
    "GPSConv": Layer(
        lambda: pyg.GPSConv(F, pyg.SAGEConv(F, F), heads=2), lambda g: (*_plain(g), g.batch)
    ),
    "GatedGraphConv": Layer(lambda: pyg.GatedGraphConv(10, num_layers=2), _weighted),
    "GeneralConv": Layer(lambda: pyg.GeneralConv(F, H, 3, attention=True, heads=2), _with_attr),
    "GraphConv": Layer(lambda: pyg.GraphConv(F, H, aggr="max"), _weighted),
    "HANConv": Layer(lambda: pyg.HANConv(F, H, _METADATA, heads=2), _hetero),
    "HEATConv": Layer(
        lambda: pyg.HEATConv(F, H, TYPES, TYPES, 4, 3, 5, heads=2),
        lambda g: (g.x, g.edge_index, g.node_type, g.edge_type, g.attr),
    ),
    "HGTConv": Layer(lambda: pyg.HGTConv(F, H, _METADATA, heads=2), _hetero),
    "HeteroConv": Layer(
        lambda: pyg.HeteroConv({key: pyg.SAGEConv(F, H) for key in _METADATA[1]}), _hetero
    ),
    "HypergraphConv": Layer(lambda: pyg.HypergraphConv(F, H), _plain),
    "LEConv": Layer(lambda: pyg.LEConv(F, H), _weighted),
    "LGConv": Layer(lambda: pyg.LGConv(), _weighted),
    "MFConv": Layer(lambda: pyg.MFConv(F, H, max_degree=4), _plain),
    "MeshCNNConv": Layer(
        lambda: pyg.MeshCNNConv(F, H),
        lambda g: (g.x, torch.arange(4 * len(g.x)).view(2, -1) % len(g.x)),
    ),
    "MixHopConv": Layer(lambda: pyg.MixHopConv(F, H, powers=[0, 1, 2]), _weighted),
    "NNConv": Layer(lambda: pyg.NNConv(F, H, _mlp(3, F * H)), _with_attr),
    "PDNConv": Layer(lambda: pyg.PDNConv(F, H, 3, 4), _with_attr),
    "PNAConv": Layer(
        lambda: pyg.PNAConv(
            F, H, ["mean", "max", "std"], ["identity", "amplification"], _DEGREES, edge_dim=3
        ),
        _with_attr,
    ),
    "PPFConv": Layer(lambda: pyg.PPFConv(_mlp(F + 4), _mlp(H)), _normals),
    "PointGNNConv": Layer(
        lambda: pyg.PointGNNConv(_mlp(F, 3), _mlp(F + 3, F), _mlp(F, F)), _points
    ),
    "PointNetConv": Layer(lambda: pyg.PointNetConv(_mlp(F + 3), _mlp(H)), _points),
    "PointTransformerConv": Layer(lambda: pyg.PointTransformerConv(F, H), _points),
    "RGATConv": Layer(lambda: pyg.RGATConv(F, H, TYPES, num_bases=2, heads=2), _typed),
    "RGCNConv": Layer(lambda: pyg.RGCNConv(F, H, TYPES), _typed),
    "ResGatedGraphConv": Layer(lambda: pyg.ResGatedGraphConv(F, H, edge_dim=3), _with_attr),
    "SAGEConv": Layer(lambda: pyg.SAGEConv(F, H, ["mean", "max"], project=True), _plain),
    "SGConv": Layer(lambda: pyg.SGConv(F, H, K=2), _weighted),
    "SSGConv": Layer(lambda: pyg.SSGConv(F, H, alpha=0.1, K=2), _weighted),
    "SignedConv": Layer(
        lambda: pyg.SignedConv(F, H, first_aggr=True),
        lambda g: (g.x, g.edge_index[:, ::2], g.edge_index[:, 1::2]),
    ),
    "SimpleConv": Layer(lambda: pyg.SimpleConv("mean", combine_root="self_loop"), _plain),
    "SuperGATConv": Layer(lambda: pyg.SuperGATConv(F, H, heads=2, attention_type="SD"), _plain),
    "TAGConv": Layer(lambda: pyg.TAGConv(F, H, K=2), _weighted),
    "TransformerConv": Layer(
        lambda: pyg.TransformerConv(F, H, heads=2, edge_dim=3, beta=True), _with_attr
    ),
    "WLConv": Layer(lambda: pyg.WLConv(), lambda g: (g.atoms, g.edge_index), kept=True),
    "WLConvContinuous": Layer(lambda: pyg.WLConvContinuous(), _weighted),
}

AGGREGATIONS: dict[str, Layer] = {
    "AttentionalAggregation": Layer(lambda: pyg.AttentionalAggregation(_mlp(F, 1)), _sets),
    "DeepSetsAggregation": Layer(lambda: pyg.DeepSetsAggregation(_mlp(F), _mlp(H)), _sets),
    "DegreeScalerAggregation": Layer(
        lambda: pyg.DegreeScalerAggregation(["sum", "max"], ["linear", "attenuation"], _DEGREES),
        _sets,
    ),
    "EquilibriumAggregation": Layer(
        lambda: pyg.EquilibriumAggregation(F, H, [10], grad_iter=2), _sets, kept=True
    ),
    "GRUAggregation": Layer(lambda: pyg.GRUAggregation(F, H), _sets, kept=True),
    "GraphMultisetTransformer": Layer(lambda: pyg.GraphMultisetTransformer(F, k=3, heads=2), _sets),
    "LCMAggregation": Layer(lambda: pyg.LCMAggregation(F, H), _sets, kept=True),
    "LSTMAggregation": Layer(lambda: pyg.LSTMAggregation(F, H), _sets, kept=True),
    "MLPAggregation": Layer(
        lambda: pyg.MLPAggregation(F, H, max_num_elements=9, num_layers=1), _sets
    ),
    "MaxAggregation": Layer(lambda: pyg.MaxAggregation(), _sets),
    "MeanAggregation": Layer(lambda: pyg.MeanAggregation(), _sets),
    "MedianAggregation": Layer(lambda: pyg.MedianAggregation(), _sets),
    "MinAggregation": Layer(lambda: pyg.MinAggregation(), _sets),
    "MulAggregation": Layer(lambda: pyg.MulAggregation(), _sets),
    "MultiAggregation": Layer(
        lambda: pyg.MultiAggregation(
            ["mean", "std"],
            mode="attn",
            mode_kwargs={"in_channels": F, "out_channels": H, "num_heads": 2},
        ),
        _sets,
    ),
    "PatchTransformerAggregation": Layer(
        lambda: pyg.PatchTransformerAggregation(F, H, 2, 8, 1, heads=2),
        _sets,
        kept=not _SINCE_2_15,
    ),
    "PowerMeanAggregation": Layer(lambda: pyg.PowerMeanAggregation(learn=True), _sets),
    "QuantileAggregation": Layer(lambda: pyg.QuantileAggregation([0.2, 0.7]), _sets),
    "Set2Set": Layer(lambda: pyg.Set2Set(F, processing_steps=2), _sets),
    "SetTransformerAggregation": Layer(
        lambda: pyg.SetTransformerAggregation(F, num_seed_points=2, heads=2),
        _sets,
        kept=_SINCE_2_15,
    ),
    "SoftmaxAggregation": Layer(lambda: pyg.SoftmaxAggregation(learn=True), _sets),
    "SortAggregation": Layer(lambda: pyg.SortAggregation(k=3), _sets),
    "StdAggregation": Layer(lambda: pyg.StdAggregation(), _sets),
    "SumAggregation": Layer(lambda: pyg.SumAggregation(), _sets),
    "VarAggregation": Layer(lambda: pyg.VarAggregation(), _sets),
    "VariancePreservingAggregation": Layer(lambda: pyg.VariancePreservingAggregation(), _sets),
}

NORMS: dict[str, Layer] = {
    "BatchNorm": Layer(lambda: pyg.BatchNorm(F), lambda g: (g.x,)),
    "DiffGroupNorm": Layer(lambda: pyg.DiffGroupNorm(F, groups=3), lambda g: (g.x,)),
    "GraphNorm": Layer(lambda: pyg.GraphNorm(F), _sets),
    "GraphSizeNorm": Layer(lambda: pyg.GraphSizeNorm(), _sets),
    "HeteroBatchNorm": Layer(lambda: pyg.HeteroBatchNorm(F, TYPES), lambda g: (g.x, g.node_type)),
    "HeteroLayerNorm": Layer(lambda: pyg.HeteroLayerNorm(F, TYPES), lambda g: (g.x, g.node_type)),
    "InstanceNorm": Layer(lambda: pyg.InstanceNorm(F, affine=True), _sets),
    "LayerNorm": Layer(lambda: pyg.LayerNorm(F), _sets),
    "MeanSubtractionNorm": Layer(lambda: pyg.MeanSubtractionNorm(), _sets),
    "MessageNorm": Layer(lambda: pyg.MessageNorm(), lambda g: (g.x, g.x.flip(0))),
    "PairNorm": Layer(lambda: pyg.PairNorm(), _sets),
}

POOLING: dict[str, Layer] = {
    "ASAPooling": Layer(lambda: pyg.ASAPooling(F, ratio=0.5), _batched, kept=True),
    "ClusterPooling": Layer(
        lambda: pyg.ClusterPooling(F), lambda g: (g.x, g.edge_index, g.batch), kept=True
    ),
    "EdgePooling": Layer(
        lambda: pyg.EdgePooling(F), lambda g: (g.x, g.edge_index, g.batch), kept=True
    ),
    "MemPooling": Layer(lambda: pyg.MemPooling(F, H, heads=2, num_clusters=3), _sets),
    "SAGPooling": Layer(lambda: pyg.SAGPooling(F, ratio=0.6), _batched),
    "TopKPooling": Layer(lambda: pyg.TopKPooling(F, ratio=0.6), _batched),
}

DENSE: dict[str, Layer] = {
    "DMoNPooling": Layer(lambda: pyg.DMoNPooling([F, F], 3), lambda g: g.dense),
    "DenseGATConv": Layer(lambda: pyg.DenseGATConv(F, H, heads=2), lambda g: g.dense),
    "DenseGCNConv": Layer(lambda: pyg.DenseGCNConv(F, H), lambda g: g.dense),
    "DenseGINConv": Layer(lambda: pyg.DenseGINConv(_mlp(F)), lambda g: g.dense),
    "DenseGraphConv": Layer(lambda: pyg.DenseGraphConv(F, H), lambda g: g.dense),
    "DenseSAGEConv": Layer(lambda: pyg.DenseSAGEConv(F, H), lambda g: g.dense),
    "HeteroDictLinear": Layer(
        lambda: pyg.HeteroDictLinear({"a": F, "b": F}, H), lambda g: ({"a": g.x, "b": g.x.flip(0)},)
    ),
    "HeteroLinear": Layer(lambda: pyg.HeteroLinear(F, H, TYPES), lambda g: (g.x, g.node_type)),
    "Linear": Layer(lambda: pyg.Linear(F, H), lambda g: (g.x,)),
}

MODELS: dict[str, Layer] = {
    "AttentiveFP": Layer(
        lambda: pyg.AttentiveFP(F, 10, H, edge_dim=3, num_layers=2, num_timesteps=2),
        lambda g: (g.x, g.edge_index, g.attr, g.batch),
    ),
    "DeepGCNLayer": Layer(
        lambda: pyg.DeepGCNLayer(pyg.GENConv(F, F), nn.LayerNorm(F), nn.ReLU()), _plain
    ),
    "EdgeCNN": Layer(lambda: pyg.EdgeCNN(F, 10, 2, H), _plain),
    "GAT": Layer(lambda: pyg.GAT(F, 10, 2, H, v2=True, heads=2, jk="cat"), _plain),
    "GCN": Layer(lambda: pyg.GCN(F, 10, 2, H, norm="layer_norm"), _weighted),
    "GIN": Layer(lambda: pyg.GIN(F, 10, 2, H, norm="batch_norm", jk="max"), _plain),
    "GraphSAGE": Layer(lambda: pyg.GraphSAGE(F, 10, 3, H, jk="lstm"), _plain),
    "GraphUNet": Layer(lambda: pyg.GraphUNet(F, 10, H, depth=2, pool_ratios=0.6), _plain),
    "GroupAddRev": Layer(
        lambda: pyg.GroupAddRev(pyg.SAGEConv(F // 2, F // 2), num_groups=2, disable=True), _plain
    ),
    "HeteroJumpingKnowledge": Layer(
        lambda: pyg.HeteroJumpingKnowledge(["a", "b"], "cat"),
        lambda g: ({"a": [g.x, g.x.exp()], "b": [g.x.flip(0), g.x]},),
    ),
    "InnerProductDecoder": Layer(lambda: pyg.InnerProductDecoder(), _plain),
    "JumpingKnowledge": Layer(
        lambda: pyg.JumpingKnowledge("lstm", F, 2), lambda g: ([g.x, g.x.flip(0)],)
    ),
    "LINKX": Layer(lambda: pyg.LINKX(20, F, 10, H, num_layers=2), _weighted),
    "LightGCN": Layer(lambda: pyg.LightGCN(20, 10, 2), lambda g: (g.edge_index,)),
    "LabelPropagation": Layer(lambda: pyg.LabelPropagation(2, 0.9), _plain),
    "MLP": Layer(lambda: pyg.MLP([F, 10, H]), lambda g: (g.x,)),
    "MetaLayer": Layer(lambda: pyg.MetaLayer(None, None, None), _with_attr),
    "NeuralFingerprint": Layer(
        lambda: pyg.NeuralFingerprint(F, 10, H, 2), lambda g: (g.x, g.edge_index, g.batch)
    ),
    "PMLP": Layer(lambda: pyg.PMLP(F, 10, H, 2), _plain),
    "PNA": Layer(
        lambda: pyg.PNA(
            F, 10, 2, H, aggregators=["mean", "min"], scalers=["identity"], deg=_DEGREES
        ),
        _plain,
    ),
    "Polynormer": Layer(
        lambda: pyg.Polynormer(F, 10, H, local_layers=1, global_layers=1, heads=2),
        lambda g: (g.x, g.edge_index, g.batch),
    ),
    "RECT_L": Layer(lambda: pyg.RECT_L(F, 10), _weighted),
    "SGFormer": Layer(
        lambda: pyg.SGFormer(F, 10, H, trans_num_heads=2), lambda g: (g.x, g.edge_index, g.batch)
    ),
    "SchNet": Layer(
        lambda: pyg.SchNet(10, 8, 2, 6, interaction_graph=_close_by),
        lambda g: (g.atoms, g.pos, g.batch),
    ),
}

OTHERS: dict[str, Layer] = {
    "PerformerAttention": Layer(
        lambda: pyg.PerformerAttention(F, heads=2),
        lambda g: (g.x[None], (g.x[None, :, 0] > -1)),
    ),
    "PolynormerAttention": Layer(
        lambda: pyg.attention.PolynormerAttention(F, heads=2), lambda g: (g.x[None],)
    ),
    "PositionalEncoding": Layer(lambda: pyg.PositionalEncoding(F), lambda g: (g.weight,)),
    "QFormer": Layer(lambda: pyg.attention.QFormer(F, 10, F, 2, 1), lambda g: (g.x[None],)),
    "SGFormerAttention": Layer(
        lambda: pyg.attention.SGFormerAttention(F, heads=2), lambda g: (g.x[None],)
    ),
    "Reshape": Layer(lambda: pyg.Reshape(-1, 2, F // 2), lambda g: (g.x,)),
    "Sequential": Layer(
        lambda: pyg.Sequential("x, edge_index", [(pyg.GCNConv(F, H), "x, edge_index -> x")]), _plain
    ),
    "TemporalEncoding": Layer(lambda: pyg.TemporalEncoding(F), lambda g: (g.weight,)),
}

LAYERS = CONV | AGGREGATIONS | NORMS | POOLING | DENSE | MODELS | OTHERS

NOT_CALLED: dict[str, str] = {
    "DimeNet": "needs pyg-lib and torch-sparse",
    "DimeNetPlusPlus": "needs pyg-lib and torch-sparse",
    "DynamicEdgeConv": "needs pyg-lib; its layer is EdgeConv",
    "GravNetConv": "needs pyg-lib",
    "PANConv": "needs torch-sparse",
    "ViSNet": "needs pyg-lib",
    "XConv": "needs pyg-lib",
    "GlobalAttention": "the old name of AttentionalAggregation",
    "ARGA": "a trainer around an encoder: its forward is the encoder's",
    "ARGVA": "a trainer around an encoder: its forward is the encoder's",
    "ARLinkPredictor": "embeddings without a graph",
    "Aggregation": "a base class",
    "ComplEx": "a knowledge graph embedding: a table of vectors",
    "CorrectAndSmooth": "no forward: two methods that take labels",
    "CuGraphGATConv": "needs pylibcugraphops",
    "CuGraphRGCNConv": "needs pylibcugraphops",
    "CuGraphSAGEConv": "needs pylibcugraphops",
    "DataParallel": "a wrapper for several GPUs",
    "DeepGraphInfomax": "draws a corrupted graph at every call",
    "DistMult": "a knowledge graph embedding: a table of vectors",
    "FusedGATConv": "needs dgNN, which runs on a GPU only",
    "GAE": "a trainer around an encoder: its forward is the encoder's",
    "GNNFF": "needs torch-sparse",
    "GPSE": "draws random node states at every call",
    "GPSENodeEncoder": "takes a Data object with precomputed encodings",
    "KGEModel": "a base class",
    "LPFormer": "needs torch-sparse and precomputed personalized page rank",
    "MaskLabel": "a part of training: writes labels into features",
    "MessagePassing": "a base class",
    "MetaPath2Vec": "a table of embeddings",
    "Node2Vec": "a table of embeddings",
    "PANPooling": "takes a torch_sparse.SparseTensor",
    "RENet": "takes a temporal knowledge graph's history as lists",
    "RotatE": "a knowledge graph embedding: a table of vectors",
    "SignedGCN": "needs torch-sparse for its features; the layers are SignedConv",
    "SplineConv": "needs pyg-lib or torch-spline-conv",
    "TGNMemory": "changes its own state at every call",
    "TransE": "a knowledge graph embedding: a table of vectors",
    "VGAE": "a trainer around an encoder: its forward is the encoder's",
}
