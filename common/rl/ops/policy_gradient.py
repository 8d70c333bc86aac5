"""Losses of policy-gradient methods: pure functions of tensors of one shape, averaged over the steps that count.

A `mask` is bool, of the same shape, True where a step counts; None says that all do, and costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from common.rl import ranks


def masked_sum(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the sum over the steps that count; a scalar."""
    # Not x * mask: a step that does not count may hold inf or nan.
    return x.sum() if mask is None else torch.where(mask, x, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the mean over the steps that count; a scalar, 0 where none does."""
    return x.mean() if mask is None else masked_sum(x, mask) / mask.sum().clamp(min=1)


def standardized(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives (x - mean) / std, both taken over the steps that count, on all ranks."""
    if mask is None:
        std, mean = torch.std_mean(x, correction=0)
    else:
        mean = masked_mean(x, mask)
        std = masked_mean((x - mean).square(), mask).sqrt()
    if ranks.size() > 1:
        _, mean, var = ranks.merged(x.numel() if mask is None else mask.sum(), mean, std.square())
        std = var.sqrt()
    return (x - mean) / (std + 1e-8)


def policy_gradient(log_prob: Tensor, advantage: Tensor, mask: Tensor | None) -> Tensor:
    """Gives -mean log π(a)·A; a scalar (Williams 1992)."""
    return -masked_mean(log_prob * advantage, mask)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float, mask: Tensor | None) -> Tensor:
    """Gives -mean min(wA, clip(w, low, high)A) for w = π/μ; a scalar.

    PPO's range is 1±ε (Schulman et al. 2017), APPO's 1/(1+ε) to 1+ε (Petrenko et al. 2020).
    """
    # The same as the minimum of both, with a third of its backward pass: only one side of the clip can bind.
    better = advantage > 0
    least, most = torch.where(better, 0.0, low), torch.where(better, high, torch.inf)
    return -masked_mean(ratio.clamp(least, most) * advantage, mask)


def rollback_surrogate(
    ratio: Tensor, advantage: Tensor, kl: Tensor, radius: float, slope: float, mask: Tensor | None
) -> Tensor:
    """Gives Truly-PPO's -mean(wA - slope·(KL - radius)) for KL = KL(μ ‖ π), the penalty where it applies; a scalar.

    A step that has left the trust region and gained by it, wA > A, is pulled back along the KL; any other is free
    (Wang et al. 2019).
    """
    gained = ratio * advantage
    outside = (kl >= radius) & (gained > advantage)
    return -masked_mean(gained - slope * torch.where(outside, kl - radius, 0.0), mask)


def value_loss(value: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the mean squared error; a scalar."""
    if mask is None:
        return functional.mse_loss(value, target)
    return masked_mean((value - target).square(), mask)


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float, mask: Tensor | None) -> Tensor:
    """Gives mean max((V-R)², (V_old + clip(V-V_old, ±ε) - R)²), as in the code of Schulman et al. 2017; a scalar."""
    near = old + (value - old).clamp(-clip, clip)
    return masked_mean(torch.maximum((value - target).square(), (near - target).square()), mask)


def approximate_kl(log_ratio: Tensor, mask: Tensor | None) -> Tensor:
    """Gives mean (w - 1) - log w, an unbiased non-negative estimate of KL(μ‖π); a scalar (Schulman 2020).

    log w counts as 60 at most: one step far in a tail must not make infinite what is only looked at.
    """
    log_ratio = log_ratio.clamp(max=60.0)
    return masked_mean(log_ratio.exp() - 1.0 - log_ratio, mask)


def outside_fraction(log_ratio: Tensor, low: float, high: float, mask: Tensor | None) -> Tensor:
    """Gives the share of steps whose ratio lies outside low to high; a scalar."""
    ratio = log_ratio.exp()
    return masked_mean(((ratio < low) | (ratio > high)).float(), mask)


def explained_variance(value: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Gives 1 - Var(R - V) / Var(R) over the steps that count: 1 is perfect, 0 as good as a constant; a scalar."""
    return 1.0 - _variance(target - value, mask) / _variance(target, mask).clamp(min=1e-8)


def _variance(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.var(correction=0) if mask is None else masked_mean((x - masked_mean(x, mask)).square(), mask)
