"""What `gnnfx.finetune` does differently for each task: rows that count, loss and metric."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from gnnfx.errors import InputError

TaskName = Literal["node-classification", "graph-classification", "graph-regression", "link"]
_TRIES = 20


class Task(abc.ABC):
    """A task on batches: anything with the module's arguments as attributes.

    arguments: names of the module's arguments.
    """

    sign: ClassVar[int] = 1  # -1 where a lower metric is better

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self.arguments = arguments

    @abc.abstractmethod
    def batches(self, data: Any, argument: str) -> Iterable[Any]:
        """The batches of one epoch; `argument` is what the caller calls `data`.

        Raises InputError for what the task cannot be trained or judged on.
        """

    @abc.abstractmethod
    def select(self, out: Tensor, batch: Any, argument: str) -> tuple[Tensor, Tensor]:
        """The part of the module's output that counts, and its targets."""

    @abc.abstractmethod
    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """A mean over targets."""

    @abc.abstractmethod
    def metric(self, out: Tensor, target: Tensor) -> float:
        """How good the outputs for all validation targets are."""


class NodeClassification(Task):
    """Classes `y` of nodes: of those in a mask of one graph, or of the first `batch_size` of each
    batch, as PyG's neighbour loaders order them."""

    _MASKS: ClassVar[dict[str, str]] = {"data": "train_mask", "validation": "val_mask"}

    def batches(self, data: Any, argument: str) -> Iterable[Any]:
        if not is_graph(data):
            return _loader(data, argument)
        wanted = (*self.arguments, "y", self._MASKS[argument])
        _verify_attributes(data, wanted, argument)
        return [data]

    def select(self, out: Tensor, batch: Any, argument: str) -> tuple[Tensor, Tensor]:
        if (count := getattr(batch, "batch_size", None)) is not None:
            return out[:count], batch.y[:count]
        if (mask := getattr(batch, self._MASKS[argument], None)) is None:
            raise InputError(
                f"a batch of {argument} has neither batch_size, which neighbour loaders give, nor "
                f"{self._MASKS[argument]}; one of them must say which nodes count"
            )
        return out[mask], batch.y[mask]

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(out, target)

    def metric(self, out: Tensor, target: Tensor) -> float:
        """Accuracy, 0 to 1."""
        return float((out.argmax(-1) == target).float().mean())


class GraphClassification(NodeClassification):
    """One class `y` for each graph of a batch."""

    def batches(self, data: Any, argument: str) -> Iterable[Any]:
        return _loader(data, argument)

    def select(self, out: Tensor, batch: Any, argument: str) -> tuple[Tensor, Tensor]:
        if len(out) != len(batch.y):
            raise InputError(
                f"the batch has {len(batch.y)} targets y, but the module gives {len(out)} rows"
            )
        return out, batch.y


class GraphRegression(GraphClassification):
    """One row `y` of numbers for each graph of a batch."""

    sign = -1

    def select(self, out: Tensor, batch: Any, argument: str) -> tuple[Tensor, Tensor]:
        if out.numel() != batch.y.numel():
            raise InputError(
                f"the batch has {batch.y.numel()} numbers in y, but the module gives {out.numel()}"
            )
        return out, batch.y.view_as(out).to(out.dtype)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(out, target)

    def metric(self, out: Tensor, target: Tensor) -> float:
        """Mean absolute error."""
        return float((out - target).abs().mean())


class LinkPrediction(Task):
    """Whether pairs `edge_label_index` [2, P] are edges: the dot product of their nodes' outputs.

    `edge_label` [P] says which are; without it all are.  In training, as many pairs that are no
    edges are drawn in each step where none are given.
    """

    def batches(self, data: Any, argument: str) -> Iterable[Any]:
        if not is_graph(data):
            return _loader(data, argument)
        labels = ("edge_label",) if argument == "validation" else ()
        _verify_attributes(data, (*self.arguments, "edge_label_index", *labels), argument)
        return [data]

    def select(self, out: Tensor, batch: Any, argument: str) -> tuple[Tensor, Tensor]:
        pairs, label = batch.edge_label_index, getattr(batch, "edge_label", None)
        target = torch.ones(pairs.shape[1]) if label is None else (label > 0).float()
        target = target.to(out.device)
        if argument == "data" and bool((target > 0).all()):
            known = torch.cat([batch.edge_index, pairs], 1)
            drawn = sample_absent_pairs(known, pairs.shape[1], len(out))
            pairs = torch.cat([pairs, drawn], 1)
            target = torch.cat([target, target.new_zeros(drawn.shape[1])])
        return (out[pairs[0]] * out[pairs[1]]).flatten(1).sum(1), target

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(out, target)

    def metric(self, out: Tensor, target: Tensor) -> float:
        """Area under the ROC curve."""
        return area_under_roc(out, target > 0)


TASKS: dict[str, type[Task]] = {
    "node-classification": NodeClassification,
    "graph-classification": GraphClassification,
    "graph-regression": GraphRegression,
    "link": LinkPrediction,
}


def sample_absent_pairs(edge_index: Tensor, count: int, nodes: int) -> Tensor:
    """About `count` pairs [2, <= count] of different nodes that are not in `edge_index` [2, E].

    Drawn by torch's global generator; fewer than asked for where hardly any pair is left.
    Raises InputError if none is found.
    """
    loops = torch.arange(nodes, device=edge_index.device) * (nodes + 1)
    known = torch.cat([edge_index[0] * nodes + edge_index[1], loops]).unique()
    found = known[:0]
    for _ in range(_TRIES):
        drawn = torch.randint(nodes * nodes, (2 * count,)).to(known.device)
        found = torch.cat([found, drawn[~torch.isin(drawn, known)]])[:count]
        if len(found) == count:
            break
    if count and not len(found):
        raise InputError(
            f"no pair of the {nodes} nodes was found that is no edge; give pairs with edge_label 0"
        )
    return torch.stack([found // nodes, found % nodes])


def area_under_roc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive's `score` [P] is above a negative's; ties count half.

    Raises InputError if `positive` [P] has but one of the two.
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        raise InputError(
            f"validation has {ones} pairs with edge_label 1 and {zeros} with 0; expected both"
        )
    _, place, sizes = score.unique(return_inverse=True, return_counts=True)
    ends = sizes.double().cumsum(0)
    rank = (ends - (sizes.double() - 1) / 2)[place]  # mean rank of equal scores, from 1
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def is_graph(data: Any) -> bool:
    """Whether `data` is one graph and not a loader of graphs."""
    return hasattr(data, "edge_index") or hasattr(data, "adj_t")


def _loader(data: Any, argument: str) -> Iterable[Any]:
    if data is None or is_graph(data) or not isinstance(data, Iterable):
        raise InputError(f"{argument} must be a loader of batches, got {type(data).__name__}")
    if isinstance(data, Iterator):
        raise InputError(
            f"{argument} must be a loader that can be read once an epoch, got an iterator "
            f"({type(data).__name__}), which ends"
        )
    return data


def _verify_attributes(data: Any, wanted: tuple[str, ...], argument: str) -> None:
    if missing := [name for name in wanted if getattr(data, name, None) is None]:
        raise InputError(f"{argument} lacks {missing}; this task needs {list(wanted)}")
