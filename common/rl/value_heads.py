"""What the numbers of one action mean: a mean return, a histogram of returns, or their quantiles.

Each says how many numbers an action has, what return they expect, and how far they are from a target. Knows no network.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from common.rl.ops.distributional import kl_divergence, project, quantile_huber
from common.rl.ops.q_learning import huber


class ValueHead(Protocol):
    """What a Q-network and its algorithm need to know of a head."""

    size: int

    def expected(self, numbers: Tensor) -> Tensor:
        """Gives the expected return [...] of numbers [..., size]."""

    def errors(self, numbers: Tensor, after: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the losses [n] of `numbers` [n, size], and without a gradient the priorities [n].

        `after` [n, size] are those of the state that follows, `reward` and `discount` [n] lead there.
        """


class Mean(nn.Module):
    """The expected return itself; errors beyond ± threshold count linearly (Mnih et al. 2015)."""

    size = 1

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self._threshold = threshold

    def expected(self, numbers: Tensor) -> Tensor:
        return numbers.squeeze(-1)

    def errors(self, numbers: Tensor, after: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        error = reward + discount * after.squeeze(-1) - numbers.squeeze(-1)
        return huber(error, self._threshold), error.detach().abs()


class Histogram(nn.Module):
    """C51: logits of `size` evenly spaced returns from low to high (Bellemare et al. 2017); a priority is the loss."""

    def __init__(self, size: int, low: float, high: float) -> None:
        super().__init__()
        self.size = size
        self.support: Tensor
        # The weights of a version need not carry it.
        self.register_buffer("support", torch.linspace(low, high, size), persistent=False)

    def expected(self, numbers: Tensor) -> Tensor:
        return numbers.softmax(-1) @ self.support

    def errors(self, numbers: Tensor, after: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        loss = kl_divergence(project(after.softmax(-1), reward, discount, self.support), numbers)
        # Rounding may put a divergence below zero.
        return loss, loss.detach().clamp(min=0.0)


class Quantiles(nn.Module):
    """QR-DQN: `size` quantiles of the return (Dabney et al. 2018); a priority is the loss."""

    def __init__(self, size: int, threshold: float) -> None:
        super().__init__()
        self.size = size
        self._threshold = threshold

    def expected(self, numbers: Tensor) -> Tensor:
        return numbers.mean(-1)

    def errors(self, numbers: Tensor, after: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        target = reward.unsqueeze(-1) + discount.unsqueeze(-1) * after
        loss = quantile_huber(numbers, target, self._threshold)
        return loss, loss.detach()
