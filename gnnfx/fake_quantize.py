"""Fake-quantizers that train: values rounded to codes going forward, gradients going back.

Forward is `torch.ops.gnnfx.fake_quantize`, the simulation that integer kernels equal code for
code.  Backward, with y the rounded value and (qmin, qmax) the ends of the codes:

    straight-through   dx = dy                                        everywhere
    clipped            dx = dy where qmin < code < qmax or code = zero_point, else 0
    learned-step       dx = dy where x is inside the range, else 0
                       ds = sum of dy * (code - zero_point - [inside] x / s) / sqrt(n * qmax)

where the step s is learned as s0 * exp(stretch).

Sources: Degree-Quant (Tailor et al., ICLR 2021) as its code runs; LSQ (Esser et al., ICLR 2020).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import gnnfx.kernels.quantize as kernels
from gnnfx import ranks
from gnnfx.errors import CalibrationError
from gnnfx.kernels.weight import weight_codes, weight_scale
from gnnfx.observers import bucket_factors
from gnnfx.ranges import MOMENTUM, TrackedRange
from gnnfx.training_policy import Training

# Activations of a model that starts from nothing grow tenfold within these forwards, which steps
# that move by about a hundredth at a time would take hundreds to follow.
_WARM_UP = 20


class FakeQuantizer(nn.Module):
    """Rounds one activation; in training its range follows the values.

    name: the site, for messages.  buckets: of rows, each of which is scaled by a factor of its own
    before it is rounded, and back.  Buffers: `scale`, `zero_point`, `frozen` and those of the
    range; with several buckets `reach` and `degree_scale` [buckets], the greatest magnitudes and
    the factors that follow from them.
    With learned steps these follow the values of the first forwards only, and the step is
    scale * exp(stretch) with the parameter `stretch`, 0-d: an optimizer's step changes it by a
    share of itself, and weight decay draws it back to where it began.
    """

    scale: Tensor
    zero_point: Tensor
    frozen: Tensor
    reach: Tensor
    degree_scale: Tensor

    def __init__(self, name: str, bits: int, training: Training, buckets: int = 1) -> None:
        super().__init__()
        self.by_degree = buckets > 1
        if self.by_degree:
            self.register_buffer("reach", torch.zeros(buckets))
            self.register_buffer("degree_scale", torch.ones(buckets))
        self.name = name
        self.bits = bits
        self.policy = training
        self.range = TrackedRange(training, bits)
        self.register_buffer("scale", torch.ones(()))
        if training.estimator == "learned-step":
            self.stretch = nn.Parameter(torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def extra_repr(self) -> str:
        return f"{self.name}, bits={self.bits}, {self.policy.estimator}"

    def forward(
        self,
        x: Tensor,
        protected: Tensor | None = None,
        owner: Tensor | None = None,
        bucket: Tensor | None = None,
        row_scale: Tensor | None = None,
    ) -> Tensor:
        """`x` [rows, ...] rounded, but in training for the rows of nodes that are `protected` [N].

        Rows are nodes, or `owner` [rows] names the node of each; `bucket` [rows] is each row's.
        With `row_scale` [rows, 1] it is x * row_scale that is rounded.
        Raises CalibrationError in eval mode if training has shown no value yet.
        """
        if protected is not None and owner is not None:
            protected = protected.index_select(0, owner)
        scaling = None if row_scale is None else row_scale.flatten()
        if bucket is not None:
            x, scaling = kernels.scale_rows(x, scaling), None
        self.follow(x, protected, bucket, scaling)
        if bucket is None:
            return self.rounded(x, protected, scaling)
        scaling = self.degree_scale[bucket]
        return kernels.scale_rows(self.rounded(x, protected, scaling), scaling.reciprocal())

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32, 0-d) and zero point (int32, 0-d) as the integer kernels take them."""
        # Copies: the next forward changes both in place, perhaps before this one's backward.
        scale, zero_point = self.scale.clone(), self.zero_point.clone()
        if self.policy.estimator == "learned-step":
            scale = scale * self.stretch.exp()
        return scale, zero_point

    def rounded(self, x: Tensor, protected: Tensor | None, scaling: Tensor | None = None) -> Tensor:
        """`x` times `scaling` [rows], rounded but, in training, in rows that are `protected`."""
        kept = protected if self.training else None
        clipped = self.policy.estimator == "clipped"
        if scaling is not None and not (
            clipped and x.dtype == scaling.dtype == torch.float32 and not scaling.requires_grad
        ):
            x, scaling = kernels.scale_rows(x, scaling), None
        rule = self.bits, self.policy.estimator, kept, scaling
        return _Round.apply(x, *self.qparams(), *rule)  # type: ignore[no-untyped-call, no-any-return]

    @torch.no_grad()
    def follow(
        self,
        x: Tensor,
        protected: Tensor | None,
        bucket: Tensor | None = None,
        scaling: Tensor | None = None,
    ) -> None:
        """In training, update the range and, unless the step is learned, the scale with it.

        Raises CalibrationError in eval mode if training has shown no value yet.
        """
        if not self.training:
            if not bool(self.range.seen):
                raise CalibrationError(
                    f"the quantizer of value {self.name!r} has seen no values; run the prepared "
                    f"module in train mode before eval mode"
                )
            return
        learned = self.policy.estimator == "learned-step"
        if bool(self.frozen) or (learned and int(self.range.seen) >= _WARM_UP):
            return
        x = x.detach()
        if bucket is not None:
            self._follow_reach(x.flatten(1), protected, bucket)
            scaling = self.degree_scale[bucket]
        self.range.update(x, protected, scaling)
        low, high = self.range.lo, self.range.hi
        symmetric = self.policy.symmetric and bool(low < 0)
        scale, zero_point = kernels.qparams_of_range(low, high, self.bits, symmetric)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def _follow_reach(self, rows: Tensor, protected: Tensor | None, bucket: Tensor) -> None:
        """Let the greatest magnitude of each bucket follow `rows` [R, C], and the factors it."""
        found = torch.zeros_like(self.reach)
        if rows.numel():
            highest = rows.abs().amax(1).float()
            if protected is not None:
                highest = highest.masked_fill(protected, 0.0)
            found = found.scatter_reduce(0, bucket, highest, "amax")
        if ranks.count() > 1:
            found = ranks.join(found, found)[1]
        if self.policy.observer in ("minmax", "percentile"):
            merged = torch.maximum(self.reach, found)
        else:
            merged = torch.lerp(self.reach, found, MOMENTUM)
            merged = torch.where(self.reach == 0, found, merged)
        self.reach.copy_(torch.where(found > 0, merged, self.reach))
        self.degree_scale.copy_(bucket_factors(self.reach))


class DynamicQuantizer(nn.Module):
    """Rounds to symmetric 8-bit codes with a scale from the values of each call: edge weights."""

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = torch.ops.gnnfx.choose_qparams(x.detach().float().contiguous(), 8)
        return _Round.apply(x, scale, zero_point, 8, "straight-through", None, None)  # type: ignore[no-untyped-call, no-any-return]


class WeightQuantizer(nn.Module):
    """Rounds a weight [O, K] to symmetric codes with one step an output channel.

    The steps just cover each channel, so that nothing is clipped; with learned steps they are those
    of the first forward (the buffer `scale` [O]) times exp of the parameter `stretch` [O].
    """

    scale: Tensor
    ready: Tensor

    def __init__(self, channels: int, bits: int, training: Training) -> None:
        super().__init__()
        self.bits = bits
        self.learned = training.estimator == "learned-step"
        if self.learned:
            self.stretch = nn.Parameter(torch.zeros(channels))
            self.register_buffer("scale", torch.ones(channels))
            self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def extra_repr(self) -> str:
        return f"bits={self.bits}" + (", learned-step" if self.learned else "")

    def forward(self, weight: Tensor) -> Tensor:
        return _RoundWeight.apply(weight, self.step(weight), self.bits)  # type: ignore[no-untyped-call, no-any-return]

    def step(self, weight: Tensor) -> Tensor:
        """The step of each output channel, float32 [O]."""
        if not self.learned:
            return weight_scale(weight, self.bits)
        if not bool(self.ready):
            with torch.no_grad():
                self.scale.copy_(weight_scale(weight, self.bits))
                self.ready.fill_(True)
        return self.scale * self.stretch.exp()


class ProtectiveMask(nn.Module):
    """Draws the nodes that stay float32 in one training forward, with torch's generator.

    Node v is protected with probability p_min + (p_max - p_min) * rank[v].
    """

    def __init__(self, p_min: float, p_max: float) -> None:
        super().__init__()
        self.p_min = p_min
        self.p_max = p_max

    def extra_repr(self) -> str:
        return f"p_min={self.p_min}, p_max={self.p_max}"

    def forward(self, rank: Tensor) -> Tensor | None:
        """Bool [N] of `rank` [N], or None in eval mode."""
        if not self.training:
            return None
        return torch.rand_like(rank) < self.p_min + (self.p_max - self.p_min) * rank


class _Round(torch.autograd.Function):
    """Fake quantization per tensor; the header of this file has its gradients.

    kept: bool [rows], those that are not rounded, and whose gradients all pass.
    scaling: float32 [rows], what rows are multiplied by first; of the clipped estimator alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        estimator: str,
        kept: Tensor | None,
        scaling: Tensor | None,
    ) -> Tensor:
        values = x.detach().float().contiguous()
        qparams = scale.detach(), zero_point, bits
        y: Tensor = torch.ops.gnnfx.fake_quantize(values, *qparams, scaling, kept)
        ctx.bits, ctx.estimator = bits, estimator
        learned = estimator == "learned-step"
        if estimator != "straight-through" and any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(y, scale, zero_point, values if learned else None, kept, scaling)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        if ctx.estimator == "straight-through":
            return grad, *[None] * 6
        y, scale, zero_point, x, kept, scaling = ctx.saved_tensors
        if x is None:
            rule = scale, zero_point, ctx.bits, kept, scaling
            # The gradient may be a constant that one number stands for.
            passed = torch.ops.gnnfx.clipped_gradient(grad.float().contiguous(), y, *rule)
            return passed.to(grad.dtype), *[None] * 6
        low, high = (scale * (end - zero_point) for end in kernels.code_range(ctx.bits))
        inside = (x >= low - scale / 2) & (x <= high + scale / 2)
        slope = y / scale - torch.where(inside, x / scale, 0.0)
        if kept is not None:
            slope[kept], inside[kept] = 0.0, True
        # Processes of data-parallel training hold equal shares of one tensor.
        values = max(x.numel(), 1) * ranks.count()
        strength = 1 / math.sqrt(values * kernels.code_range(ctx.bits)[1])
        step = (grad * slope).sum() * strength
        return torch.where(inside, grad, 0.0), step, *[None] * 5


class _RoundWeight(torch.autograd.Function):
    """Fake quantization with one symmetric step an output channel."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        y = weight_codes(weight.detach(), scale.detach(), bits).float() * scale.detach()[:, None]
        ctx.bits = bits
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(weight, y, scale)
        return y.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        if not ctx.needs_input_grad[1]:
            return grad, None, None
        weight, y, scale = ctx.saved_tensors
        steps, qmax = weight / scale[:, None], 2 ** (ctx.bits - 1) - 1
        inside = steps.abs() <= qmax + 0.5
        slope = y / scale[:, None] - torch.where(inside, steps, 0.0)
        strength = 1 / math.sqrt(max(weight.shape[1], 1) * qmax)
        return torch.where(inside, grad, 0.0), (grad * slope).sum(1) * strength, None
