"""Train towards sparse weights: ADMM, and surrogate Lagrangian relaxation (SLR).

The loss gets a term that pulls each weight matrix W towards its pruned copy Z,

    rho / 2 * ||W - Z + U||^2,

and after each epoch Z and U follow W.  ADMM always adds W - Z to U; SLR (Gurevin et al.,
arXiv:2012.10079) moves its multipliers rho * U only where that brings the Lagrangian down, by
steps that shrink.  At the end the small weights go for good: `prune()`, then train on with the
masks.  Step sizes follow Peng et al., "Towards Sparsification of GNNs" (arXiv:2209.04766).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gnnfx.errors import InputError
from gnnfx.pruning.masks import Masks
from gnnfx.pruning.select import count_of, keep_largest


class Admm:
    """Pulls weights towards their pruned copies.

    weights: matrices by name.  ratio: share of each that goes.  rho: weight of the pull.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], ratio: float, *, rho: float = 0.01
    ) -> None:
        if not 0.0 <= ratio < 1.0:
            raise InputError(f"ratio must lie in [0, 1), got {ratio}")
        if not weights:
            raise InputError("weights must name one weight or more, got none")
        self.weights = dict(weights)
        self.ratio = ratio
        self.rho = rho
        self.pruned = {n: _pruned(w.detach(), ratio) for n, w in self.weights.items()}
        self.duals = {name: torch.zeros_like(z) for name, z in self.pruned.items()}

    def penalty(self) -> Tensor:
        """The term to add to the loss of every batch."""
        return sum(
            (
                self.rho / 2 * (w - self.pruned[n] + self.duals[n]).square().sum()
                for n, w in self.weights.items()
            ),
            start=torch.zeros(()),
        )

    def step(self, loss: float) -> None:
        """Call after each epoch with its task loss."""
        for name, weight in self.weights.items():
            self.pruned[name] = _pruned(weight.detach() + self.duals[name], self.ratio)
            self.duals[name] += weight.detach() - self.pruned[name]

    def gap(self) -> float:
        """Distance of the weights from their pruned copies, which training brings down."""
        squares = [(w.detach() - self.pruned[n]).square().sum() for n, w in self.weights.items()]
        return float(torch.stack(squares).sum().sqrt())

    def prune(self) -> Masks:
        """Set the smallest weights to zero; the masks to keep them there."""
        masks = {name: _mask(w.detach(), self.ratio) for name, w in self.weights.items()}
        with torch.no_grad():
            for name, mask in masks.items():
                self.weights[name].masked_fill_(~mask, 0.0)
        return masks


class Slr(Admm):
    """ADMM whose multipliers move only where the Lagrangian falls, by shrinking steps.

    step_size: the first step.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        ratio: float,
        *,
        rho: float = 0.01,
        step_size: float = 0.001,
    ) -> None:
        super().__init__(weights, ratio, rho=rho)
        self.step_size = step_size
        self._accepted = 1
        self._last_gap = self.gap()
        self._last_value = float("inf")

    def step(self, loss: float) -> None:
        """Call after each epoch with its task loss."""
        self._move_multipliers(loss)
        for name, weight in self.weights.items():
            self.pruned[name] = _pruned(weight.detach() + self.duals[name], self.ratio)
        self._move_multipliers(loss)

    def _move_multipliers(self, loss: float) -> None:
        value = loss + float(self.penalty().detach())
        if self._accepted > 1 and value >= self._last_value:
            return
        gap = self.gap()
        # a_k = 1 - 1 / (M * k^p) with p = 1 - 1 / k^r, M = 200 and r = 0.1, from the paper's code.
        power = 1 - 1 / self._accepted**0.1
        shrink = 1 - 1 / (200 * self._accepted**power)
        if gap > 0 and self._accepted > 1:
            self.step_size *= shrink * self._last_gap / gap
        for name, weight in self.weights.items():
            self.duals[name] += self.step_size / self.rho * (weight.detach() - self.pruned[name])
        self._accepted += 1
        self._last_gap = gap
        self._last_value = loss + float(self.penalty().detach())


def _mask(weight: Tensor, ratio: float) -> Tensor:
    return keep_largest(weight.abs(), count_of(ratio, weight.numel()))


def _pruned(weight: Tensor, ratio: float) -> Tensor:
    return weight * _mask(weight, ratio)
