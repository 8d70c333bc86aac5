"""Action distributions as lean tensors: sampling by inverse CDF from given uniforms, log-probability, entropy, KL.

Knows no network and draws no noise of its own. Leading axes are free ([B] when acting, [T, B] when learning).
torch.distributions is not used: on small batches its checks cost more than the network does.
"""

from __future__ import annotations

import math
from typing import Protocol, Self

import torch
from torch import Tensor

from common.types import ActionSpec

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class Distribution(Protocol):
    """What a policy gives for each observation: a distribution over actions."""

    def sample(self, u: Tensor) -> Tensor:
        """Gives the actions at quantiles u [..., noise_size], each in (0, 1)."""

    def mode(self) -> Tensor:
        """Gives the most likely actions."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Gives log π(action), summed over an action's components: [...]."""

    def entropy(self) -> Tensor:
        """Gives the entropy in nats, summed over components: [...]."""

    def kl(self, other: Self) -> Tensor:
        """Gives KL(self ‖ other) in nats: [...]."""


class Categorical:
    """One choice among n; actions are int64 [...]."""

    __slots__ = ("log_probs",)

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = torch.log_softmax(logits, -1)

    def sample(self, u: Tensor) -> Tensor:
        # The last edge is left out: rounding may put it below u, and there is no choice beyond it.
        edges = self.log_probs[..., :-1].exp().cumsum(-1)
        return (u >= edges).sum(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Self) -> Tensor:
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)


class MultiCategorical:
    """Independent choices, n[i] of them in component i; logits are [..., sum(n)], actions int64 [..., *shape]."""

    __slots__ = ("_parts", "_shape")

    def __init__(self, logits: Tensor, n: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self._parts = [Categorical(part) for part in torch.split(logits, list(n), -1)]
        self._shape = shape

    def _shaped(self, components: list[Tensor]) -> Tensor:
        actions = torch.stack(components, -1)
        return actions.reshape(*actions.shape[:-1], *self._shape)

    def sample(self, u: Tensor) -> Tensor:
        return self._shaped([part.sample(u[..., i : i + 1]) for i, part in enumerate(self._parts)])

    def mode(self) -> Tensor:
        return self._shaped([part.mode() for part in self._parts])

    def log_prob(self, action: Tensor) -> Tensor:
        columns = action.flatten(-len(self._shape)).unbind(-1)
        return torch.stack([part.log_prob(a) for part, a in zip(self._parts, columns, strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self._parts]).sum(0)

    def kl(self, other: Self) -> Tensor:
        pairs = zip(self._parts, other._parts, strict=True)
        return torch.stack([mine.kl(theirs) for mine, theirs in pairs]).sum(0)


class DiagNormal:
    """Independent normals; mean is [..., k], log_std [k] (or broadcastable), actions [..., *shape] unbounded."""

    __slots__ = ("_log_std", "_mean", "_shape", "_std")

    def __init__(self, mean: Tensor, log_std: Tensor, shape: tuple[int, ...]) -> None:
        self._mean = mean
        self._log_std = log_std
        self._std = log_std.exp()
        self._shape = shape

    def sample(self, u: Tensor) -> Tensor:
        z: Tensor = torch.special.ndtri(u)
        return (self._mean + self._std * z).reshape(*self._mean.shape[:-1], *self._shape)

    def mode(self) -> Tensor:
        return self._mean.reshape(*self._mean.shape[:-1], *self._shape)

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action.reshape(self._mean.shape).to(self._mean.dtype) - self._mean) / self._std
        return torch.sum(-0.5 * z * z - (self._log_std + _HALF_LOG_TWO_PI), -1)

    def entropy(self) -> Tensor:
        return (self._log_std + (0.5 + _HALF_LOG_TWO_PI)).expand_as(self._mean).sum(-1)

    def kl(self, other: Self) -> Tensor:
        scale = self._std / other._std
        shift = (self._mean - other._mean) / other._std
        return (0.5 * (scale * scale + shift * shift - 1.0) - scale.log()).sum(-1)


def parameter_size(action: ActionSpec) -> int:
    """Gives how many numbers a network's head must put out for one action."""
    return action.size if action.kind == "box" else sum(action.n)


def noise_size(action: ActionSpec) -> int:
    """Gives how many uniforms sampling one action consumes: one per component."""
    return 1 if action.kind == "discrete" else action.size


def make_distribution(action: ActionSpec, parameters: Tensor, log_std: Tensor | None) -> Distribution:
    """Builds the distribution of an action space from a head's output [..., parameter_size]; a box needs `log_std`."""
    if action.kind == "discrete":
        return Categorical(parameters)
    if action.kind == "multi_discrete":
        return MultiCategorical(parameters, action.n, action.shape)
    if log_std is None:
        raise ValueError(f"a {action.kind} action needs log_std")
    return DiagNormal(parameters, log_std, action.shape)
