"""`gnnfx.Pruner`: prune while the user trains, then take the smaller model.

pruner = gnnfx.Pruner(model, Prune(ratio=0.5, schedule="cubic", end=100), (x, edge_index))
for _ in range(200):
    ...
    optimizer.step()
    pruner.step()
small = pruner.remove()
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx.errors import PolicyError
from gnnfx.frontend.signature import flatten
from gnnfx.frontend.trace import Traced, trace
from gnnfx.ir.program import Program
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.passes.prune_channels import PruneChannels
from gnnfx.pipeline import FLOAT_FACTS, raise_passes
from gnnfx.policy import Policy, Prune
from gnnfx.pruning.aggregation import passed_on
from gnnfx.pruning.criteria import Evidence, group_lasso
from gnnfx.pruning.flops import Flops, count_flops
from gnnfx.pruning.groups import find_groups
from gnnfx.pruning.masks import Masks, unit_masks
from gnnfx.pruning.schedule import share_due
from gnnfx.pruning.select import (
    group_ratios,
    select_units,
    select_weights,
    weight_matrices,
    weight_ratios,
)


class Pruner:
    """Masks weights of a model in training and removes what is masked throughout.

    model: trained as before, by its own optimizer; masked parameters are set to zero in place.
    prune: what goes, by which criterion, and when.
    example_inputs, example_kwargs: as for `gnnfx.optimize`.

    groups: the channels that go together.
    masks: which values of each pruned parameter stay; empty until the schedule begins.

    Raises InputError, TraceError or PolicyError for what the caller can mend.
    """

    def __init__(
        self,
        model: nn.Module,
        prune: Prune,
        example_inputs: tuple[Any, ...] | None = None,
        *,
        example_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(prune, Prune):
            raise PolicyError(f"prune must be a gnnfx.Prune, got {type(prune).__name__}")
        self.model = model
        self.prune = prune
        self.masks: Masks = {}
        self._traced = trace(model, example_inputs, example_kwargs)
        self._program = PassManager(raise_passes()).run(self._traced.program, PassContext())
        self._weights = weight_matrices(self._program)
        self._number = 0
        self.groups = find_groups(self._program)
        if prune.method == "structured":
            group_ratios(self.groups, prune)
        else:
            weight_ratios(self._weights, prune)

    def step(self) -> None:
        """Call after each `optimizer.step()`: prune what is due and keep what is pruned at zero."""
        if (share := share_due(self.prune, self._number)) is not None:
            self.masks = self._choose(share)
        self._number += 1
        tensors = self._tensors()
        with torch.no_grad():
            for name, mask in self.masks.items():
                tensors[name].masked_fill_(~mask, 0.0)

    def penalty(self) -> Tensor:
        """Sum of the norms of all channels and heads: add a multiple of it to the loss.

        It drives whole channels towards zero (group lasso), so that removing them costs little.
        """
        return group_lasso(self.groups, self._tensors())

    def remove(self) -> fx.GraphModule:
        """A smaller module without the channels whose weights are all zero.

        Its parameters are trainable and have the model's names.  It computes what the masked
        model computes in eval mode, also while it is fine-tuned: batch norms use their running
        statistics and nothing is dropped out.
        """
        ctx = PassContext(Policy(prune=self.prune))
        program = replace(self._program.copy(), tensors=self._copies())
        program = PassManager([PruneChannels()], FLOAT_FACTS).run(program, ctx)
        return _trainable(program, self._traced, self.model)

    def flops(self) -> Flops:
        """Operations of one forward pass on the example, zero weights left out."""
        return count_flops(self._program, self._example(), self._tensors())

    def _example(self) -> tuple[Any, ...]:
        leaves = flatten(self._traced.example)
        return tuple(leaves[name] for name in self._traced.leaves)

    def _tensors(self) -> dict[str, Tensor]:
        """The model's tensors as they are now; constants of the program where it has none."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        return {**self._program.tensors, **named, **buffers}

    def _copies(self) -> dict[str, Tensor]:
        tensors = self._tensors()
        return {name: tensors[name].detach().clone() for name in self._program.tensors}

    def _choose(self, share: float) -> Masks:
        tensors = self._tensors()
        gradients = {n: t.grad for n, t in tensors.items() if t.is_leaf and t.grad is not None}
        measured = {}
        if self.prune.criterion == "aggregation":
            current = replace(self._program, tensors=self._copies())
            measured = passed_on(current, self.groups, self._example())
        generator = torch.Generator().manual_seed(self.prune.seed)
        evidence = Evidence(tensors, gradients, measured, generator)
        if self.prune.method != "structured":
            return select_weights(self._weights, self.prune, evidence, share)
        chosen = [c for _, c in select_units(self.groups, self.prune, evidence, share)]
        units = [unit for found in chosen if not isinstance(found, str) for unit in found]
        return unit_masks(self.groups, units, tensors)


def _trainable(program: Program, traced: Traced, model: nn.Module) -> fx.GraphModule:
    """A module over `program` that is called as `model` is and has its parameters."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in program.tensors:
            program.tensors[name] = nn.Parameter(program.tensors[name], parameter.requires_grad)
    module = program.module()
    _nest_arguments(module.graph, traced)
    output = module.graph.output_node()
    output.args = (pytree.tree_unflatten(list(output.args[0]), traced.out_spec),)  # type: ignore[arg-type]
    module.recompile()
    return module.eval()


def _nest_arguments(graph: fx.Graph, traced: Traced) -> None:
    """Let the inputs of `graph`, one a leaf, be the model's arguments, which may be nested."""
    inputs = {node.target: node for node in graph.nodes if node.op == "placeholder"}
    leaves = iter(flatten(traced.example))
    with graph.inserting_before(next(iter(graph.nodes))):
        arguments = {name: graph.placeholder(f"{name}_") for name in traced.example}
    for name, value in traced.example.items():
        for path, _ in pytree.tree_flatten_with_path(value)[0]:
            old = inputs.get(next(leaves).replace(".", "_"))
            if old is None:
                continue
            with graph.inserting_before(old):
                leaf = arguments[name]
                for key in path:
                    index = getattr(key, "key", getattr(key, "idx", None))
                    leaf = graph.call_function(operator.getitem, (leaf, index))
            old.replace_all_uses_with(leaf)
            graph.erase_node(old)
        arguments[name].target = arguments[name].name = name
