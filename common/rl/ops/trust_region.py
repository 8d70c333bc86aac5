"""LASER's trust region (Schmitt et al. 2019): which steps another policy took are still fit to learn from.

Pure functions of distributions and of flags over [T, B]; knows no network and no loss.

V-trace with ratios cut at rho learns the value of the implied policy π̃ ∝ min(rho μ, π) and not of π. KL(π ‖ π̃) is how
far the two are apart, no matter what the sampled action was. It is exact for one categorical choice. For other spaces,
where the paper suggests sampling, it is a mean over fixed quantiles of π, the same at every call.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from common.rl.distributions import Categorical, Distribution

_POINTS = 64


def implied_kl(target: Distribution, behaviour: Distribution, rho: float, noise_size: int) -> Tensor:
    """Gives KL(π ‖ π̃) in nats [T, B] of π and μ over [T, B]; `noise_size` uniforms sample one action of either."""
    if isinstance(target, Categorical) and isinstance(behaviour, Categorical):
        return _categorical(target.log_probs, behaviour.log_probs, math.log(rho))
    return _quantiles(target, behaviour, math.log(rho), noise_size)


def _categorical(log_pi: Tensor, log_mu: Tensor, log_rho: float) -> Tensor:
    implied = torch.minimum(log_mu + log_rho, log_pi)
    difference = log_pi - implied
    # An action that π never takes adds nothing, though its logarithms may be infinite.
    excess = torch.where(log_pi.isneginf(), 0.0, log_pi.exp() * difference)
    return excess.sum(-1) + implied.logsumexp(-1)


@lru_cache(maxsize=8)
def _lattice(size: int) -> Tensor:
    """Gives [_POINTS, size] points that fill (0, 1)^size evenly: multiples, less their whole parts, of steps that are
    the powers of a generalised golden ratio (Roberts 2018)."""
    ratio = 2.0
    for _ in range(30):
        ratio = (1.0 + ratio) ** (1.0 / (size + 1))
    steps = ratio ** -torch.arange(1.0, size + 1.0, dtype=torch.float64)
    points = (0.5 + torch.arange(_POINTS, dtype=torch.float64).unsqueeze(-1) * steps) % 1.0
    return points.float().clamp(1e-4, 1.0 - 1e-4)


def _quantiles(target: Distribution, behaviour: Distribution, log_rho: float, noise_size: int) -> Tensor:
    """With w = π/μ at actions of π: KL = E max(0, log w - log rho) + log E min(1, rho/w)."""
    log_ratios = []
    parameters = target.parameters()
    for u in _lattice(noise_size).to(parameters.device):
        action = target.sample(u.expand(*parameters.shape[:-1], noise_size))
        log_ratios.append(target.log_prob(action) - behaviour.log_prob(action))
    excess = (torch.stack(log_ratios) - log_rho).clamp(min=0.0)
    # Not the logarithm of a mean of exponentials: these are all zero where μ is far away.
    return excess.mean(0) + (-excess).logsumexp(0) - math.log(_POINTS)


def within(distance: Tensor, bound: float, terminated: Tensor, truncated: Tensor, valid: Tensor | None) -> Tensor:
    """Says which steps to learn from, [T, B] bool: those before the first of their episode whose distance is beyond it.

    A step beyond the bound takes with it all that follow until its episode ends; the next episode begins afresh. A step
    that is not valid is kept: it says nothing.
    """
    beyond = ~(distance <= bound) if valid is None else ~(distance <= bound) & valid
    ends = terminated | truncated
    begins = torch.cat([torch.ones_like(ends[:1]), ends[:-1]])
    row = torch.arange(distance.shape[0], device=distance.device).unsqueeze(-1)
    start = torch.where(begins, row, 0).cummax(0).values
    last_beyond = torch.where(beyond, row, -1).cummax(0).values
    return last_beyond < start
