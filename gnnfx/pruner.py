"""`gnnfx.Pruner`: prune while the user trains, then take the smaller model.

pruner = gnnfx.Pruner(model, Prune(ratio=0.5, schedule="cubic", end=100), (x, edge_index))
for _ in range(200):
    ...
    optimizer.step()
    pruner.step()
small = pruner.remove()                # trains on as the model did
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import gnnfx.kernels  # noqa: F401  (registers every op)
from gnnfx.backend.prepared import PreparedModule, captured
from gnnfx.errors import InputError, PolicyError
from gnnfx.frontend.signature import flatten
from gnnfx.pass_manager import PassContext, PassManager
from gnnfx.pipeline import FLOAT_FACTS, raise_passes, removal_passes
from gnnfx.policy import Prune
from gnnfx.prepare import prepare_traced
from gnnfx.pruning.aggregation import passed_on
from gnnfx.pruning.criteria import Evidence, group_lasso
from gnnfx.pruning.flops import Flops, count_flops
from gnnfx.pruning.groups import find_groups
from gnnfx.pruning.masks import Masks, unit_masks
from gnnfx.pruning.schedule import share_due
from gnnfx.pruning.select import (
    chosen_units,
    group_ratios,
    select_units,
    select_weights,
    verify_effect,
    weight_matrices,
    weight_ratios,
)
from gnnfx.pruning.storage import zeros_remark


class Pruner:
    """Masks weights of a model in training and removes what is masked throughout.

    model: trained as before, by its own optimizer, or a module prepared in float; masked
        parameters are set to zero in place.
    prune: what goes, by which criterion, and when.
    example_inputs, example_kwargs: as for `gnnfx.optimize`.

    groups: the channels that go together, and the layers that can go.
    weights: names of the matrices that single weights are pruned of.
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
        self._traced = captured(model, example_inputs, example_kwargs, training=True)
        passes = raise_passes(training=True)
        self._program = PassManager(passes).run(self._traced.program, PassContext())
        self.weights = weight_matrices(self._program)
        self._number = 0
        self.groups = find_groups(self._program)
        if prune.removes:
            ratios = group_ratios(self.groups, prune)
            verify_effect([(group, group.kept or list(group.units)) for group in ratios], prune)
        else:
            weight_ratios(self.weights, prune)

    def step(self) -> None:
        """Call after each `optimizer.step()`: prune what is due and keep what is pruned at zero."""
        if (share := share_due(self.prune, self._number)) is not None:
            self.masks = self._choose(share)
        self._number += 1
        self._mask()

    def penalty(self) -> Tensor:
        """Sum of the norms of all units (channels, heads or layers): add a multiple to the loss.

        It drives whole units towards zero (group lasso), so that removing them costs little.
        """
        return group_lasso(self.groups, self.prune.units, self._tensors())

    def remove(self) -> PreparedModule:
        """A smaller module without the channels and layers whose weights are all zero.

        It computes what the masked model computes, in train mode too: batch norms use and update
        statistics, and dropout drops.  Its parameters have the model's names, and `prepare`,
        `finetune` and `optimize` take it as they take the model.
        """
        ctx = PassContext()
        tensors = self._tensors()
        if back := [name for name, mask in self.masks.items() if bool(tensors[name][~mask].any())]:
            warnings.warn(
                f"pruned weights of {', '.join(back)} have changed since the last step(), as if an "
                f"earlier checkpoint had been loaded; they are set to zero once more",
                stacklevel=2,
            )
            self._mask()
        program = replace(self._program.copy(), tensors=self._copies())
        program = PassManager(removal_passes(), FLOAT_FACTS).run(program, ctx)
        if not self.prune.removes:
            params = {i.param: i for i in program.instrs if i.op == "param"}
            for name in self.weights:
                ctx.did(params[name].users[0], zeros_remark(name, program.tensors[name]))
        traced = replace(self._traced, program=program)
        small = prepare_traced(self.model, traced, ctx).train(self.model.training)
        _forget(small, set(self._program.tensors) - set(program.tensors))
        return small

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint beside the states of the model and the optimizer."""
        return {"number": self._number, "masks": {n: m.clone() for n, m in self.masks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; load the states of the model and the optimizer as well.

        Raises InputError if the state is of another model.
        """
        tensors = self._tensors()
        for name, mask in state["masks"].items():
            shape = tuple(tensors[name].shape) if name in tensors else "none of that name"
            if tuple(mask.shape) != shape:
                raise InputError(
                    f"state masks the weight {name!r} {tuple(mask.shape)}; the model has {shape}"
                )
        self._number = state["number"]
        self.masks = {n: m.to(tensors[n].device) for n, m in state["masks"].items()}

    def __reduce__(self) -> tuple[Any, ...]:
        raise InputError(
            "a Pruner cannot be copied or pickled; expected its state_dict(), which a Pruner of "
            "the same model loads"
        )

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

    def _mask(self) -> None:
        tensors = self._tensors()
        with torch.no_grad():
            for name, mask in self.masks.items():
                tensors[name].masked_fill_(~mask, 0.0)

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
        if not self.prune.removes:
            return select_weights(self.weights, self.prune, evidence, share)
        found = list(select_units(self.groups, self.prune, evidence, share))
        if share == 1.0:
            verify_effect(found, self.prune)
        return unit_masks(self.groups, chosen_units(found), tensors)


def _forget(module: nn.Module, names: set[str]) -> None:
    """Take the tensors `names` out of `module`, under each name that they have there."""
    found = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    gone = {id(tensor) for name, tensor in found if name in names}
    for name, tensor in found:
        if id(tensor) in gone:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)
