"""Train a sparse model from the first step: SET and RigL move the weights that there are.

Every `every` steps the smallest weights of each layer are dropped and as many others are grown:
where the gradient is largest (RigL, Evci et al., arXiv:1911.11134) or at random (SET, Mocanu et
al., arXiv:1707.04780).  The share that moves falls with a cosine.

    sparse = SparseTraining({"lin.weight": model.lin.weight}, optimizer, density=0.1, end=1000)
    for batch in data:
        loss(model(batch)).backward()
        optimizer.step()
        sparse.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gnnfx.errors import InputError
from gnnfx.pruning.masks import Masks
from gnnfx.pruning.select import count_of, keep_largest


class SparseTraining:
    """Keeps all but a fixed number of weights of each matrix at zero, and moves them.

    weights: matrices by name; biases stay dense.
    density: share of all weights that there are.
    distribution: 'uniform', or 'erk' (Erdos-Renyi kernel), which leaves small layers denser.
    growth: 'gradient' (RigL) or 'random' (SET).
    drop: share of a layer's weights that moves at first.
    end: the step after which nothing moves; `every`: steps between moves.

    masks: which weights there are.  Making one draws masks and sets other weights to zero, so a
    run goes on by making it first and loading the states of model, optimizer and this after.

    Raises InputError for a share outside (0, 1], unknown names, and weights that the optimizer
    does not train.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        density: float,
        *,
        end: int,
        every: int = 50,
        distribution: Literal["uniform", "erk"] = "erk",
        growth: Literal["gradient", "random"] = "gradient",
        drop: float = 0.5,
        seed: int = 0,
    ) -> None:
        for name, share in {"density": density, "drop": drop}.items():
            if not 0.0 < share <= 1.0:
                raise InputError(f"{name} must lie in (0, 1], got {share}")
        for name, given, known in (
            ("distribution", distribution, ("uniform", "erk")),
            ("growth", growth, ("gradient", "random")),
        ):
            if given not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; got {given!r}")
        if every < 1 or end < 1:
            raise InputError(f"expected every >= 1 and end >= 1, got every={every}, end={end}")
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if strange := [name for name, w in weights.items() if id(w) not in trained]:
            raise InputError(f"optimizer does not train the weights {', '.join(strange)}")
        if not weights:
            raise InputError("weights is empty; expected at least one matrix by name")
        self.weights = dict(weights)
        self._optimizer = optimizer
        self._end, self._every, self._drop, self._growth = end, every, drop, growth
        self._generator = torch.Generator().manual_seed(seed)
        self._number = 0
        shapes = {name: tuple(w.shape) for name, w in self.weights.items()}
        shares = erk_densities(shapes, density) if distribution == "erk" else {}
        self.masks: Masks = {
            name: self._random_mask(w, shares.get(name, density))
            for name, w in self.weights.items()
        }
        self._apply()

    def step(self) -> None:
        """Call after `optimizer.step()` and before the gradients are cleared."""
        self._number += 1
        if self._number % self._every == 0 and self._number < self._end:
            for name, weight in self.weights.items():
                self._move(name, weight)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint beside the states of the model and the optimizer."""
        return {
            "number": self._number,
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; load the states of the model and the optimizer as well.

        Raises InputError if the state is of other weights.
        """
        shapes = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        expected = {name: tuple(w.shape) for name, w in self.weights.items()}
        if shapes != expected:
            raise InputError(f"state is of the weights {shapes}; expected {expected}")
        self._number = state["number"]
        self.masks = {n: m.to(self.weights[n].device) for n, m in state["masks"].items()}
        self._generator.set_state(state["generator"])

    def drop_share(self) -> float:
        """The share of a layer's weights that moves at the present step."""
        return self._drop / 2 * (1 + math.cos(math.pi * self._number / self._end))

    def _move(self, name: str, weight: nn.Parameter) -> None:
        mask = self.masks[name]
        free = int((~mask).sum())
        count = min(count_of(self.drop_share(), int(mask.sum())), free)
        if count == 0:
            return
        if self._growth == "gradient":
            if weight.grad is None:
                raise InputError(f"weight {name!r} has no gradient; call step() before zero_grad()")
            scores = weight.grad.abs()
        else:
            scores = torch.rand(weight.shape, generator=self._generator).to(weight.device)
        # What is dropped may not grow again at once, or large gradients would undo every drop.
        grown = ~keep_largest(torch.where(mask, -math.inf, scores).neg(), count)
        size = torch.where(mask, weight.detach().abs(), math.inf)
        kept = mask & keep_largest(size, count)
        self.masks[name] = kept | grown
        with torch.no_grad():
            weight[grown] = 0.0
        self._reset_state(weight, changed=grown | (mask & ~kept))

    def _reset_state(self, weight: nn.Parameter, changed: Tensor) -> None:
        """What the optimizer remembers of a weight that comes or goes is of another weight."""
        for value in self._optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value[changed] = 0

    def _apply(self) -> None:
        """Weights that are not there stay zero, and momentum must not gather for them."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.masked_fill_(~self.masks[name], 0.0)
                self._reset_state(weight, changed=~self.masks[name])

    def _random_mask(self, weight: Tensor, density: float) -> Tensor:
        scores = torch.rand(weight.shape, generator=self._generator).to(weight.device)
        kept = max(round(density * weight.numel()), 1)
        return keep_largest(scores, weight.numel() - kept)


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities proportional to (sum of dims) / (product of dims), `density` over all weights.

    A layer that would need more than it has is dense, and the others share the rest.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    dense: set[str] = set()
    while len(dense) < len(shapes):
        left = budget - sum(sizes[name] for name in dense)
        scale = left / sum(raw[n] * sizes[n] for n in shapes if n not in dense)
        full = {n for n in shapes if n not in dense and scale * raw[n] > 1.0}
        if not full:
            break
        dense |= full
    return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
