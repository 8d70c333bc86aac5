"""Action distributions as lean tensors: sampling from given uniforms, log-probability, entropy, KL.

Knows no network and draws no noise of its own. Leading axes are free ([B] when acting, [T, B] when learning); a
distribution over several components is their independent product. What lies between bounds is in `bounded`.
torch.distributions is not used: on small batches its checks cost more than the network does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOWEST = torch.finfo(torch.float32).min


class Distribution(Protocol):
    """What a policy gives for each observation: a distribution over actions."""

    def sample(self, u: Tensor) -> Tensor:
        """Gives actions as a pure function of uniforms u [..., noise_size], each in (0, 1)."""

    def mode(self) -> Tensor:
        """Gives the most likely actions."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Gives log π(action), summed over an action's components: [...]."""

    def entropy(self) -> Tensor:
        """Gives the entropy in nats, summed over components: [...]."""

    def kl(self, other: Self) -> Tensor:
        """Gives KL(self ‖ other) in nats: [...]."""

    def parameters(self) -> Tensor:
        """Gives all that it takes to build the distribution again: [..., P]."""


class Categorical:
    """One choice among n; actions are int64 [...]. A choice whose logit is LOWEST is never sampled."""

    __slots__ = ("log_probs",)

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = torch.log_softmax(logits, -1)

    def sample(self, u: Tensor) -> Tensor:
        # Against the edges' own end and not against 1: rounding must never reach a last choice of probability 0.
        edges = self.log_probs.exp().cumsum(-1)
        return (u * edges[..., -1:] >= edges[..., :-1]).sum(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Self) -> Tensor:
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def parameters(self) -> Tensor:
        return self.log_probs


class MultiCategorical:
    """Independent choices, n[i] of them in component i; logits are [..., sum(n)], actions int64 [..., *shape]."""

    __slots__ = ("_shape", "parts")

    def __init__(self, logits: Tensor, n: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.parts = [Categorical(part) for part in torch.split(logits, list(n), -1)]
        self._shape = shape

    def _shaped(self, components: list[Tensor]) -> Tensor:
        actions = torch.stack(components, -1)
        return actions.reshape(*actions.shape[:-1], *self._shape)

    def sample(self, u: Tensor) -> Tensor:
        return self._shaped([part.sample(u[..., i : i + 1]) for i, part in enumerate(self.parts)])

    def mode(self) -> Tensor:
        return self._shaped([part.mode() for part in self.parts])

    def log_prob(self, action: Tensor) -> Tensor:
        columns = action.flatten(-len(self._shape)).unbind(-1)
        return torch.stack([part.log_prob(a) for part, a in zip(self.parts, columns, strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def kl(self, other: Self) -> Tensor:
        pairs = zip(self.parts, other.parts, strict=True)
        return torch.stack([mine.kl(theirs) for mine, theirs in pairs]).sum(0)

    def parameters(self) -> Tensor:
        return torch.cat([part.log_probs for part in self.parts], -1)


class Bernoulli:
    """Independent switches; logits are [..., k], actions int64 0 or 1, [..., *shape]. At LOWEST a switch stays 0."""

    __slots__ = ("_logits", "_shape")

    def __init__(self, logits: Tensor, shape: tuple[int, ...]) -> None:
        self._logits = logits
        self._shape = shape

    def _shaped(self, on: Tensor) -> Tensor:
        return on.long().reshape(*on.shape[:-1], *self._shape)

    def sample(self, u: Tensor) -> Tensor:
        return self._shaped(u < self._logits.sigmoid())

    def mode(self) -> Tensor:
        return self._shaped(self._logits > 0.0)

    def log_prob(self, action: Tensor) -> Tensor:
        on = action.reshape(self._logits.shape).bool()
        return functional.logsigmoid(torch.where(on, self._logits, -self._logits)).sum(-1)

    def entropy(self) -> Tensor:
        return -self._expected(self._logits).sum(-1)

    def kl(self, other: Self) -> Tensor:
        return (self._expected(self._logits) - self._expected(other._logits)).sum(-1)

    def _expected(self, logits: Tensor) -> Tensor:
        """Gives E over one's own switches of the log-probability under `logits`."""
        on, off = self._logits.sigmoid(), (-self._logits).sigmoid()
        return on * functional.logsigmoid(logits) + off * functional.logsigmoid(-logits)

    def parameters(self) -> Tensor:
        return self._logits


class DiagNormal:
    """Independent normals; mean is [..., k], log_std [k] (or broadcastable), actions [..., *shape] unbounded."""

    __slots__ = ("_shape", "_std", "log_std", "mean")

    def __init__(self, mean: Tensor, log_std: Tensor, shape: tuple[int, ...]) -> None:
        self.mean = mean
        self.log_std = log_std
        self._std = log_std.exp()
        self._shape = shape

    def sample(self, u: Tensor) -> Tensor:
        z: Tensor = torch.special.ndtri(u)
        return (self.mean + self._std * z).reshape(*self.mean.shape[:-1], *self._shape)

    def mode(self) -> Tensor:
        return self.mean.reshape(*self.mean.shape[:-1], *self._shape)

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action.reshape(self.mean.shape).to(self.mean.dtype) - self.mean) / self._std
        return torch.sum(-0.5 * z * z - (self.log_std + HALF_LOG_TWO_PI), -1)

    def entropy(self) -> Tensor:
        return (self.log_std + (0.5 + HALF_LOG_TWO_PI)).expand_as(self.mean).sum(-1)

    def kl(self, other: Self) -> Tensor:
        scale = self._std / other._std
        shift = (self.mean - other.mean) / other._std
        return (0.5 * (scale * scale + shift * shift - 1.0) - scale.log()).sum(-1)

    def parameters(self) -> Tensor:
        return torch.cat([self.mean, self.log_std.expand_as(self.mean)], -1)


class Joint:
    """Independent distributions side by side: part i has sizes[i] components of the action [..., sum(sizes)].

    `noise` is how many uniforms each takes; `shapes` are the parts' own action shapes.
    """

    __slots__ = ("_dtype", "_noise", "_shapes", "_sizes", "parts")

    def __init__(
        self, parts: Sequence[Any], shapes: Sequence[tuple[int, ...]], noise: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.parts = list(parts)
        self._shapes = list(shapes)
        self._sizes = [math.prod(shape) for shape in shapes]
        self._noise = list(noise)
        self._dtype = dtype

    def _joined(self, actions: list[Tensor]) -> Tensor:
        flat = [
            action.reshape(*action.shape[: action.ndim - len(shape)], -1).to(self._dtype)
            for action, shape in zip(actions, self._shapes, strict=True)
        ]
        return torch.cat(flat, -1)

    def sample(self, u: Tensor) -> Tensor:
        pairs = zip(self.parts, torch.split(u, self._noise, -1), strict=True)
        return self._joined([part.sample(own) for part, own in pairs])

    def mode(self) -> Tensor:
        return self._joined([part.mode() for part in self.parts])

    def log_prob(self, action: Tensor) -> Tensor:
        total: Tensor | None = None
        for part, shape, own in zip(self.parts, self._shapes, torch.split(action, self._sizes, -1), strict=True):
            one: Tensor = part.log_prob(own.reshape(*own.shape[:-1], *shape))
            total = one if total is None else total + one
        assert total is not None
        return total

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def kl(self, other: Self) -> Tensor:
        return torch.stack([mine.kl(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True)]).sum(0)

    def parameters(self) -> Tensor:
        return torch.cat([part.parameters() for part in self.parts], -1)
