"""Losses of policy-gradient methods: pure functions of tensors of one shape, averaged over the steps that count.

A `mask` is bool, of the same shape, True where a step counts; None says that all do, and costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the mean over the steps that count; a scalar, 0 where none does."""
    if mask is None:
        return x.mean()
    # Not x * mask: a step that does not count may hold inf or nan.
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def standardized(x: Tensor, mask: Tensor | None) -> Tensor:
    """Gives (x - mean) / std, both taken over the steps that count."""
    if mask is None:
        std, mean = torch.std_mean(x, correction=0)
    else:
        mean = masked_mean(x, mask)
        std = masked_mean((x - mean).square(), mask).sqrt()
    return (x - mean) / (std + 1e-8)


def policy_gradient(log_prob: Tensor, advantage: Tensor, mask: Tensor | None) -> Tensor:
    """Gives -mean log π(a)·A; a scalar (Williams 1992)."""
    return -masked_mean(log_prob * advantage, mask)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float, mask: Tensor | None) -> Tensor:
    """Gives -mean min(wA, clip(w, 1±ε)A) for w = π/μ; a scalar (Schulman et al. 2017)."""
    # The same as the minimum of both, with a third of its backward pass: only one side of the clip can bind.
    better = advantage > 0
    low, high = torch.where(better, 0.0, 1.0 - clip), torch.where(better, 1.0 + clip, torch.inf)
    return -masked_mean(ratio.clamp(low, high) * advantage, mask)


def value_loss(value: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Gives the mean squared error; a scalar."""
    if mask is None:
        return functional.mse_loss(value, target)
    return masked_mean((value - target).square(), mask)


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float, mask: Tensor | None) -> Tensor:
    """Gives mean max((V-R)², (V_old + clip(V-V_old, ±ε) - R)²), as in the code of Schulman et al. 2017; a scalar."""
    near = old + (value - old).clamp(-clip, clip)
    return masked_mean(torch.maximum((value - target).square(), (near - target).square()), mask)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Gives mean (w - 1) - log w, an unbiased non-negative estimate of KL(μ‖π); a scalar (Schulman 2020)."""
    return (log_ratio.exp() - 1.0 - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip: float) -> Tensor:
    """Gives the share of steps whose ratio lies outside 1±ε; a scalar."""
    return ((log_ratio.exp() - 1.0).abs() > clip).float().mean()


def explained_variance(value: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Gives 1 - Var(R - V) / Var(R) over the steps that count: 1 is perfect, 0 as good as a constant; a scalar."""
    if mask is not None:
        value, target = value[mask], target[mask]
    return 1.0 - (target - value).var(correction=0) / target.var(correction=0).clamp(min=1e-8)
