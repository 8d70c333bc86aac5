"""Returns as distributions: pure functions that know no network. Both kinds are n rows of k numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def project(probabilities: Tensor, reward: Tensor, discount: Tensor, support: Tensor) -> Tensor:
    """Moves each atom to reward + discount · atom and shares its mass between the two nearest (Bellemare et al. 2017).

    `probabilities` are [n, k], `support` [k] is evenly spaced, `reward` and `discount` [n]. What leaves the support
    goes to its edge, and what meets an atom goes to that one whole.
    """
    spacing = (support[-1] - support[0]) / (support.shape[0] - 1)
    moved = (reward.unsqueeze(-1) + discount.unsqueeze(-1) * support).clamp_(support[0], support[-1])
    distance = (moved.unsqueeze(1) - support.unsqueeze(-1)).abs_().div_(spacing)
    share = distance.neg_().add_(1.0).clamp_(min=0.0)
    return (share @ probabilities.unsqueeze(-1)).squeeze(-1)


def kl_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Gives KL(target ‖ softmax(logits)) of rows [n, k]: the cross-entropy, less what no learning takes away."""
    return (torch.xlogy(target, target) - target * logits.log_softmax(-1)).sum(-1)


def quantile_huber(quantiles: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Gives the loss [n] of `quantiles` [n, k], at the middles of k equal shares, for samples `target` [n, m].

    Summed over the quantiles and averaged over the samples; errors within ± threshold count squared (Dabney et al.
    2018). No gradient goes to the samples.
    """
    return _QuantileHuber.apply(quantiles, target, threshold)  # type: ignore[no-any-return,no-untyped-call]


class _QuantileHuber(torch.autograd.Function):
    """The slope comes with the loss, so that of all [n, k, m] errors nothing is kept for it.

    An error above 0 weighs the quantile's share, one below 0 the rest of 1: so a row needs its sum and that of its
    errors above 0, and no weights.
    """

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, target: Tensor, threshold: float) -> Tensor:
        k, m = quantiles.shape[-1], target.shape[-1]
        middle = (torch.arange(k, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / k
        error = target.unsqueeze(1) - quantiles.unsqueeze(-1)
        slope = error.clamp(-threshold, threshold)
        above = slope.clamp(min=0.0)
        slopes, slopes_above = slope.sum(-1), above.sum(-1)
        # Huber's loss is slope (error - slope / 2), within the threshold and beyond it.
        loss = error.sub_(slope, alpha=0.5).mul_(slope)
        losses, losses_above = loss.sum(-1), loss.mul_(above.sign_()).sum(-1)
        scale = 1.0 / (m * threshold)
        ctx.save_for_backward(torch.lerp(slopes - slopes_above, slopes_above, middle).mul_(-scale))
        return torch.lerp(losses - losses_above, losses_above, middle).sum(-1).mul_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient.unsqueeze(-1), None, None
