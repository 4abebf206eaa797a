"""The order of the passes: the one place to read what happens to a program."""

from __future__ import annotations

from gnnfx.pass_manager import Pass
from gnnfx.passes.canonicalize import Canonicalize
from gnnfx.passes.choose_qparams import ChooseQparams
from gnnfx.passes.distribute_linear import DistributeLinear
from gnnfx.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from gnnfx.passes.fold_attention_scores import FoldAttentionScores
from gnnfx.passes.fold_batch_norm import FoldBatchNorm
from gnnfx.passes.fold_channel_scale import FoldChannelScale
from gnnfx.passes.fold_constants import FoldConstants
from gnnfx.passes.fold_quantization import FoldQuantization
from gnnfx.passes.fuse_aggregate import FuseAggregate
from gnnfx.passes.fuse_attention import FuseAttention
from gnnfx.passes.fuse_edge_mlp import FuseEdgeMlp
from gnnfx.passes.fuse_edge_network import FuseEdgeNetwork
from gnnfx.passes.fuse_epilogue import FuseEpilogue
from gnnfx.passes.fuse_gated_messages import FuseGatedMessages
from gnnfx.passes.fuse_linear_sum import FuseLinearSum
from gnnfx.passes.fuse_messages import FuseMessages
from gnnfx.passes.fuse_multiply_add import FuseMultiplyAdd
from gnnfx.passes.fuse_quantize import FuseQuantize
from gnnfx.passes.fuse_reductions import FuseReductions
from gnnfx.passes.fuse_relations import FuseRelations
from gnnfx.passes.fuse_requantize import FuseRequantize
from gnnfx.passes.fuse_self_loops import FuseSelfLoops
from gnnfx.passes.fuse_softmax_messages import FuseSoftmaxMessages
from gnnfx.passes.insert_observers import InsertObservers
from gnnfx.passes.keep_heads import KeepHeads
from gnnfx.passes.lower_degrees import LowerDegrees
from gnnfx.passes.lower_linear import LowerLinear
from gnnfx.passes.merge_attention_scores import MergeAttentionScores
from gnnfx.passes.merge_linear import MergeLinear
from gnnfx.passes.multiply_by_type import MultiplyByType
from gnnfx.passes.observe_as_paper import ObserveAsPaper
from gnnfx.passes.protect_nodes import ProtectNodes
from gnnfx.passes.prune import Prune
from gnnfx.passes.prune_channels import PruneChannels
from gnnfx.passes.prune_layers import PruneLayers
from gnnfx.passes.raise_linear import RaiseLinear
from gnnfx.passes.raise_message_passing import RaiseMessagePassing
from gnnfx.passes.reassociate import Reassociate
from gnnfx.passes.remark_input_reads import RemarkInputReads
from gnnfx.passes.scale_by_degree import ScaleByDegree
from gnnfx.passes.select_csr_linear import SelectCsrLinear
from gnnfx.passes.select_quantized_sparse_linear import SelectQuantizedSparseLinear
from gnnfx.passes.select_sparse_linear import SelectSparseLinear
from gnnfx.passes.separate_norm import SeparateNorm
from gnnfx.passes.split_edge_types import SplitEdgeTypes
from gnnfx.passes.split_linear import SplitLinear
from gnnfx.passes.unbind_axes import UnbindAxes
from gnnfx.policy import Policy


def raise_passes(training: bool = False) -> list[Pass]:
    """From traced ATen to float message passing, layer by layer as in the model."""
    return [
        Canonicalize(training),
        RaiseMessagePassing(),
        EliminateCommonSubexpressions(),
        Canonicalize(training),
    ]


def removal_passes() -> list[Pass]:
    """From masked to smaller: what is zero throughout goes."""
    return [PruneLayers(), PruneChannels()]


def float_passes(policy: Policy) -> list[Pass]:
    """From traced ATen to pruned and fused float message passing."""
    return [
        *raise_passes(),
        *([Prune(), *removal_passes()] if policy.prune is not None else []),
        FoldConstants(),
        RaiseLinear(),
        FoldBatchNorm(),
        MultiplyByType(),
        FoldAttentionScores(),
        KeepHeads(),
        UnbindAxes(),
        DistributeLinear(),
        SplitLinear(),
        MergeLinear(),
        EliminateCommonSubexpressions(),
        FuseReductions(),
        FuseGatedMessages(),
        FuseEdgeNetwork(),
        FuseSoftmaxMessages(),
        FuseMessages(),
        FoldConstants(),
        FuseAggregate(),
        FuseAttention(),
        EliminateCommonSubexpressions(),
        FuseEpilogue(),
        Reassociate(),
        FuseEpilogue(),
        FoldConstants(),
        SelectSparseLinear(),
    ]


def lower_passes() -> list[Pass]:
    """What is left in float, and what is computed of the graph, in the form that runs fastest."""
    return [
        FoldAttentionScores(),
        SelectCsrLinear(),
        FuseEdgeMlp(),
        LowerLinear(),
        FuseEpilogue(),
        MergeAttentionScores(),
        FuseRelations(),
        SeparateNorm(sources=False),
        LowerDegrees(),
        FuseSelfLoops(),
        SplitEdgeTypes(),
        EliminateCommonSubexpressions(),
        FuseMultiplyAdd(),
    ]


def observe_passes() -> list[Pass]:
    """From a float program to one whose integer inputs are marked for calibration."""
    return [SeparateNorm(), EliminateCommonSubexpressions(), InsertObservers(), ScaleByDegree()]


def quantize_passes() -> list[Pass]:
    """From a calibrated program to integer execution."""
    return [
        ChooseQparams(),
        EliminateCommonSubexpressions(),
        FoldQuantization(),
        FoldChannelScale(),
        SelectQuantizedSparseLinear(),
        FuseEdgeMlp(),
        FuseEpilogue(),
        FuseLinearSum(),
        FuseRequantize(),
        FuseQuantize(),
        RemarkInputReads(),
    ]


def training_passes(policy: Policy) -> list[Pass]:
    """From traced ATen to the program that is trained; parameters keep names and values."""
    passes = raise_passes(training=True)
    if policy.quantize is not None and policy.quantize.training.placement == "paper":
        return [*passes, ObserveAsPaper(), FuseAggregate(), ProtectNodes()]
    passes += [
        FuseAggregate(),
        EliminateCommonSubexpressions(),
        FuseEpilogue(),
        Reassociate(),
        FuseEpilogue(),
    ]
    if policy.quantize is not None:
        passes += [*observe_passes(), ProtectNodes()]
    return passes


def convert_passes() -> list[Pass]:
    """From the program that was trained to its eval form, with rounded weights as they are."""
    return [
        Canonicalize(),
        FoldBatchNorm(keep_weights=True),
        FoldConstants(),
        FoldAttentionScores(keep_weights=True),
        FuseAttention(),
        EliminateCommonSubexpressions(),
        FuseEpilogue(),
    ]


def compression_stages(policy: Policy) -> tuple[str, ...]:
    """The order of `gnnfx.compress`: ranges are learned of what is left after pruning."""
    pruned = ("prune", "fine-tune") if policy.prune is not None else ()
    rounded = ("train-rounded",) if policy.quantize is not None else ()
    return ("dense", *pruned, *rounded, "convert")


FLOAT_FACTS = frozenset({"canonical", "raised", "csr"})
