"""Running moments of a stream of tensors, and the two things they scale: observations and rewards.

Knows nothing of policies or of optimisers. Moments are float64 and are merged in batches (Chan et al. 1983).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_EPSILON = 1e-8


class Moments(nn.Module):
    """Count, mean and variance of all the values folded in so far; element-wise over `shape`."""

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))

    @torch.no_grad()
    def fold(self, values: Tensor) -> None:
        """Merges the statistics of `values`, [N, *shape]; an empty batch changes nothing."""
        n = values.shape[0]
        if n == 0:
            return
        var, mean = torch.var_mean(values.double(), 0, correction=0)
        total = self.count + n
        delta = mean - self.mean
        spread = self.var * self.count + var * n + delta * delta * (self.count * n / total)
        self.mean += delta * (n / total)
        self.var.copy_(spread / total)
        self.count.copy_(total)


class ObservationNormalizer(nn.Module):
    """Maps x [N, width] to (x - mean) / std, cut to ±10; its statistics are buffers, so they ship with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.moments = Moments((width,))
        # Derived float32 copies: they are never saved, and follow every load.
        self.register_buffer("mean", torch.zeros(width), persistent=False)
        self.register_buffer("scale", torch.ones(width), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.scale).clamp_(-10.0, 10.0)

    def fold(self, x: Tensor) -> None:
        """Merges x [N, width] into the statistics that later calls use."""
        self.moments.fold(x)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the float32 copies up to date; whoever writes the buffers in place must call it."""
        self.mean.copy_(self.moments.mean)
        self.scale.copy_((self.moments.var + _EPSILON).rsqrt())


class RewardScaler:
    """Divides rewards by the running std of each env's discounted return, cut to ±10 (Engstrom et al. 2020).

    The running returns are kept per column and are part of the state. A batch does not say which env a column is, and
    columns come and go with env-servers: a column that is new starts at zero and one that is gone is dropped. Columns
    are draws from one distribution, so one that changes its env costs at most one episode of slightly wrong samples.
    """

    def __init__(self, discount: float, device: torch.device) -> None:
        self._discount = discount
        self._moments = Moments(()).to(device)
        self._returns = torch.zeros(0, device=device)

    @torch.no_grad()
    def scale(self, reward: Tensor, end: Tensor, valid: Tensor | None) -> Tensor:
        """Folds the rewards [T, B] into the statistics and gives them scaled; `end` [T, B] is where an episode ends."""
        columns = reward.shape[1]
        kept = self._returns[:columns]
        running = torch.cat([kept, kept.new_zeros(columns - kept.shape[0])])
        carry = (~end).float() * self._discount
        rows = []
        for r, c in zip(reward.unbind(0), carry.unbind(0), strict=True):
            total = running + r
            rows.append(total)
            running = total * c
        self._returns = running
        totals = torch.stack(rows)
        self._moments.fold(totals.reshape(-1) if valid is None else totals[valid])
        std = (self._moments.var + _EPSILON).sqrt().float()
        return (reward / std).clamp_(-10.0, 10.0)

    def state_dict(self) -> dict[str, Any]:
        return {**{name: value.clone() for name, value in self._moments.state_dict().items()}, "returns": self._returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._returns = state["returns"].to(self._returns.device)
        self._moments.load_state_dict({name: value for name, value in state.items() if name != "returns"})
