"""V-trace (Espeholt et al. 2018): value targets and policy advantages from another policy's steps.

A pure function over [T, B]; what it is given carries no gradient. Knows no network and no loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.rl.ops.returns import accumulate, continuing, following


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What cuts the importance weights: rho of the temporal differences, c of the trace, pg_rho of the policy term."""

    rho: float = 1.0
    c: float = 1.0
    pg_rho: float = 1.0


@dataclass(frozen=True, slots=True)
class VTrace:
    """`target` [T, B] is vs; `advantage` [T, B] is what log π(a) is weighted with, min(pg_rho, w) included.

    `unweighted` [T, B] is the same without that weight, for a loss that has a ratio of its own.
    """

    target: Tensor
    advantage: Tensor
    unweighted: Tensor


def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor | None,
    discount: float,
    lam: float,
    thresholds: Thresholds,
) -> VTrace:
    """Gives V-trace of log π(a)/μ(a) and the values before and after each step; all arguments are [T, B].

    δ_t = min(rho, w)(r_t + discount (1 - term_t) V_{t+1} - V_t), vs_t - V_t = δ_t + discount λ min(c, w)(vs_{t+1} -
    V_{t+1}), and A_t = min(pg_rho, w)(r_t + discount (1 - term_t) vs_{t+1} - V_t). Where an episode is cut vs_{t+1} is
    V_{t+1}. A step that is not valid has target V_t and advantage 0 and stops the trace.
    """
    ratio = log_ratio.exp()
    discounts = discount * (~terminated).to(reward.dtype)
    error = reward + discounts * next_value - value
    if valid is not None:
        # A step that is no decision may hold a ratio of inf: it must not reach a product.
        ratio, error = torch.where(valid, ratio, 0.0), torch.where(valid, error, 0.0)
    goes_on = continuing(terminated, truncated, valid).to(reward.dtype)
    carry = (discount * lam) * goes_on * ratio.clamp(max=thresholds.c)
    correction = accumulate(ratio.clamp(max=thresholds.rho) * error, carry)
    unweighted = error + discount * goes_on * following(correction)
    return VTrace(value + correction, ratio.clamp(max=thresholds.pg_rho) * unweighted, unweighted)
