"""Returns and advantages over time-major tensors [T, B]: pure functions that know no network and no loss."""

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


def _accumulate(delta: Tensor, carry: Tensor) -> Tensor:
    """Solves x_t = delta_t + carry_t · x_{t+1} backwards over [T, B], from zero."""
    total = torch.zeros_like(delta[0])
    rows = []
    for d, c in zip(reversed(delta.unbind(0)), reversed(carry.unbind(0)), strict=True):
        total = torch.addcmul(d, c, total)
        rows.append(total)
    rows.reverse()
    return torch.stack(rows)


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

    δ_t = r_t + discount (1 - term_t) V_{t+1} - V_t and A_t = δ_t + discount λ (1 - end_t) A_{t+1}. A step that is not
    valid has advantage 0 and stops the recursion; `valid` None says that all are.
    """
    delta = reward + discount * next_value * ~terminated - value
    carry = (discount * lam) * (~(terminated | truncated)).to(delta.dtype)
    if valid is not None:
        delta = delta * valid
        carry = carry * valid
    return _accumulate(delta, carry)


def discounted_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor | None, discount: float
) -> Tensor:
    """Gives G_t = r_t + discount G_{t+1} [T, B], bootstrapped from `next_value` at a truncation and at the last row.

    A termination adds nothing after it. A step that is not valid has return 0, and the step before it bootstraps.
    """
    cut = truncated.clone()
    cut[-1] = True
    if valid is not None:
        cut[:-1] |= ~valid[1:]
    delta = reward + discount * next_value * (cut & ~terminated)
    carry = discount * (~(terminated | cut)).to(delta.dtype)
    if valid is not None:
        delta = delta * valid
        carry = carry * valid
    return _accumulate(delta, carry)
