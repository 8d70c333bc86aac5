"""Returns as distributions: pure functions that know no network. Both kinds are n rows of k numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from common.rl.ops.q_learning import huber


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
    2018).
    """
    k = quantiles.shape[-1]
    middle = (torch.arange(k, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / k
    error = target.unsqueeze(1) - quantiles.unsqueeze(-1)
    weight = (middle.unsqueeze(-1) - (error.detach() < 0.0).to(error.dtype)).abs()
    return (weight * huber(error, threshold)).mean(-1).sum(-1) / threshold
