"""Dense layers with factorised noise that learns its own size (Fortunato et al. 2018). Draws none, knows no network.

Where the paper draws noise for a whole batch, a row may have its own here: acting keys it by environment and step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def factorised(normal: Tensor) -> Tensor:
    """Gives f(x) = sign(x) √|x|: products of two such numbers are the noise of one weight."""
    return normal.sign() * normal.abs().sqrt()


class Dense(nn.Module):
    """A linear layer; with `sigma` above 0 a noisy one, whose noise is [N or 1, noise] numbers of `factorised`."""

    def __init__(self, before: int, after: int, sigma: float) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.spread = nn.Linear(before, after) if sigma else None
        self.noise = before + after if sigma else 0
        if self.spread is not None:
            for parameter in self.spread.parameters():
                nn.init.constant_(parameter, sigma / math.sqrt(before))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Gives [N, after] of [N, before]; without noise it is the mean layer."""
        y = functional.linear(x, self.linear.weight, self.linear.bias)
        if self.spread is None or noise is None:
            return y
        into, out = torch.split(noise, [x.shape[-1], y.shape[-1]], -1)
        return torch.addcmul(y, functional.linear(x * into, self.spread.weight, self.spread.bias), out)
