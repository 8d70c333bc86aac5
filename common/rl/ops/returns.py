"""Returns and advantages over time-major tensors [T, B]: pure functions that know no network and no loss.

A step that is not valid belongs to no episode: it has return or advantage 0 and stops every recursion, and the step
before it bootstraps. `valid` None says that all are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def next_values(value: Tensor, final_index: Tensor | None, final_value: Tensor | None) -> Tensor:
    """Gives the value after each step, [T, B]: row t + 1 of `value` [T+1, B], or that of a true last observation.

    `final_index` [K] int64 holds t * B + b of each step whose episode ended with an observation of its own, and
    `final_value` [K] what those are worth; both are None where there are none.
    """
    after = value[1:]
    if final_index is None or final_value is None:
        return after
    return after.flatten().index_copy(0, final_index, final_value).view_as(after)


def accumulate(delta: Tensor, carry: Tensor) -> Tensor:
    """Solves x_t = delta_t + carry_t · x_{t+1} backwards over [T, B], from zero."""
    total = torch.zeros_like(delta[0])
    rows = []
    for d, c in zip(reversed(delta.unbind(0)), reversed(carry.unbind(0)), strict=True):
        total = torch.addcmul(d, c, total)
        rows.append(total)
    rows.reverse()
    return torch.stack(rows)


def following(x: Tensor) -> Tensor:
    """Gives x_{t+1} at each t of [T, B], and zero (or False) at the last."""
    return torch.cat([x[1:], torch.zeros_like(x[:1])])


def continuing(terminated: Tensor, truncated: Tensor, valid: Tensor | None) -> Tensor:
    """Says of each step whether the next row goes on with its episode, [T, B] bool; the last row never does."""
    goes_on = ~(terminated | truncated)
    goes_on[-1] = False
    return goes_on if valid is None else goes_on & valid & following(valid)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor | None,
    discount: float,
    lam: float,
) -> Tensor:
    """Gives generalised advantages [T, B]; all arguments are [T, B] (Schulman et al. 2016).

    δ_t = r_t + discount (1 - term_t) V_{t+1} - V_t and A_t = δ_t + discount λ (1 - end_t) A_{t+1}.
    """
    delta = reward + discount * next_value * ~terminated - value
    carry = (discount * lam) * (~(terminated | truncated)).to(delta.dtype)
    if valid is not None:
        delta = torch.where(valid, delta, 0.0)
        carry = carry * valid
    return accumulate(delta, carry)


def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor | None,
    discount: float,
    lam: float,
) -> Tensor:
    """Gives λ-returns [T, B]: G_t = r_t + discount (1 - term_t) ((1 - λ) V_{t+1} + λ G_{t+1}) (Sutton 1988).

    Where an episode is cut, by a truncation or by the last row, all of the bootstrap is V_{t+1}.
    """
    mix = lam * continuing(terminated, truncated, valid).to(reward.dtype)
    delta = reward + discount * (1.0 - mix) * next_value * ~terminated
    return accumulate(delta if valid is None else torch.where(valid, delta, 0.0), discount * mix)


def discounted_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor | None, discount: float
) -> Tensor:
    """Gives G_t = r_t + discount G_{t+1} [T, B], bootstrapped from `next_value` at a truncation and at the last row."""
    return lambda_returns(reward, next_value, terminated, truncated, valid, discount, 1.0)


def n_step_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor | None,
    discount: float,
    n: int,
) -> Tensor:
    """Gives the sum of n discounted rewards and the value after them, [T, B]; fewer where the episode is cut."""
    goes_on = continuing(terminated, truncated, valid)
    bootstrap = next_value * ~terminated
    returns = reward + discount * bootstrap
    for _ in range(n - 1):
        returns = reward + discount * torch.where(goes_on, following(returns), bootstrap)
    return returns if valid is None else torch.where(valid, returns, 0.0)
