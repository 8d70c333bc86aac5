"""Distributions of actions between bounds: a normal squashed by tanh, and the Beta distribution.

As in `distributions`; `low` and `high` are finite, [k], and the log-probabilities are densities in the action's units.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.rl.distributions import HALF_LOG_TWO_PI, DiagNormal

# An action at its very bound has no finite density: it is taken to lie this far within, as a share of the half range.
_MARGIN = 1e-6
_NODES = 32
_ATTEMPTS = 6


def has_bounds(low: tuple[float, ...], high: tuple[float, ...]) -> bool:
    """Says whether `Bounds` can be made: each low is below its high, by no more than float32 can hold."""
    bottom, top = torch.tensor(low), torch.tensor(high)
    scale = (top - bottom) / 2.0
    return bool(((scale > 0.0) & scale.isfinite() & (top + bottom).isfinite()).all())


class Bounds(nn.Module):
    """The box that actions lie in, [k]; maps from and to -1..1. It is no part of a policy's weights."""

    scale: Tensor
    centre: Tensor
    log_scale: Tensor

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        bottom, top = torch.tensor(low), torch.tensor(high)
        self.shape = shape
        self.register_buffer("scale", (top - bottom) / 2.0, persistent=False)
        self.register_buffer("centre", (top + bottom) / 2.0, persistent=False)
        self.register_buffer("log_scale", self.scale.log(), persistent=False)

    def outward(self, y: Tensor) -> Tensor:
        """Gives the actions [..., *shape] of y [..., k] in -1..1."""
        return (self.centre + self.scale * y).reshape(*y.shape[:-1], *self.shape)

    def inward(self, action: Tensor) -> Tensor:
        """Gives y [..., k] in -1..1 of actions [..., *shape]; what lies outside the bounds is at them."""
        flat = action.reshape(*action.shape[: action.ndim - len(self.shape)], -1)
        return ((flat.to(self.scale.dtype) - self.centre) / self.scale).clamp(-1.0, 1.0)


def _within(y: Tensor) -> Tensor:
    return y.clamp(_MARGIN - 1.0, 1.0 - _MARGIN)


@cache
def _quadrature() -> tuple[list[float], list[float]]:
    """Gives Gauss-Hermite nodes and weights for a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes.tolist(), (weights / weights.sum()).tolist()


def _log_slope(z: Tensor) -> Tensor:
    """Gives log(1 - tanh²(z)) without the cancellation that writing it so would bring."""
    return 2.0 * (math.log(2.0) - z - functional.softplus(-2.0 * z))


class _Drawn(torch.autograd.Function):
    """Gives y = tanh(mean + std · e), [..., k], and its log density in ±1, [...], of e from a standard normal.

    One node of the graph: two dozen of a few numbers each would cost ten times their arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        away = log_std.exp() * e
        z = mean + away
        y = z.tanh()
        ctx.save_for_backward(y, away)
        return y, (-0.5 * e * e - (log_std + HALF_LOG_TWO_PI) - _log_slope(z)).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_density: Tensor) -> tuple[Tensor, Tensor, None]:
        y, away = ctx.saved_tensors
        of_each = of_density.unsqueeze(-1)
        # The slope of -log(1 - tanh²(z)) is 2 tanh(z).
        of_mean = torch.ops.aten.tanh_backward(of_y, y) + 2.0 * y * of_each
        return of_mean, of_mean * away - of_each, None


class TanhNormal:
    """tanh of independent normals, scaled to the bounds (Haarnoja et al. 2018); mean and log_std are [..., k].

    The entropy has no closed form: it is the normal's plus E log|dy/dz| by 32-point Gauss-Hermite quadrature for each
    component, exact to 1e-3 nats up to a standard deviation of 2. `mode` is the median, tanh of the mean.
    """

    __slots__ = ("_bounds", "_normal")

    def __init__(self, mean: Tensor, log_std: Tensor, bounds: Bounds) -> None:
        self._normal = DiagNormal(mean, log_std, mean.shape[-1:])
        self._bounds = bounds

    def sample(self, u: Tensor) -> Tensor:
        return self._bounds.outward(self._normal.sample(u).tanh())

    def sample_with_log_prob(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gives actions, differentiable in the parameters, and their log π [...], from z itself: none is cut."""
        mean, e = self._normal.mean, torch.special.ndtri(u)
        y, density = _Drawn.apply(mean, self._normal.log_std.expand_as(mean), e)  # type: ignore[no-untyped-call]
        return self._bounds.outward(y), density - self._bounds.log_scale.sum()

    def mode(self) -> Tensor:
        return self._bounds.outward(self._normal.mean.tanh())

    def log_prob(self, action: Tensor) -> Tensor:
        return self._density(_within(self._bounds.inward(action)).atanh())

    def _density(self, z: Tensor) -> Tensor:
        return self._normal.log_prob(z) - (_log_slope(z) + self._bounds.log_scale).sum(-1)

    def entropy(self) -> Tensor:
        mean, std = self._normal.mean, self._normal.log_std.exp()
        slope = torch.zeros_like(mean)
        for node, weight in zip(*_quadrature(), strict=True):
            slope = slope + weight * _log_slope(mean + std * node)
        return self._normal.entropy() + (slope + self._bounds.log_scale).sum(-1)

    def kl(self, other: Self) -> Tensor:
        # A map that both share, and that loses nothing, leaves the divergence as it was.
        return self._normal.kl(other._normal)

    def parameters(self) -> Tensor:
        return self._normal.parameters()


class Beta:
    """Independent Beta distributions, scaled to the bounds (Chou et al. 2017); alpha and beta are [..., k], above 1.

    A sample is G(alpha) / (G(alpha) + G(beta)) of two gamma variates.
    """

    __slots__ = ("_alpha", "_beta", "_bounds")

    noise = 4 * _ATTEMPTS

    def __init__(self, alpha: Tensor, beta: Tensor, bounds: Bounds) -> None:
        self._alpha = alpha
        self._beta = beta
        self._bounds = bounds

    def sample(self, u: Tensor) -> Tensor:
        """As `Distribution.sample`; each component takes `noise` uniforms."""
        u = u.reshape(*self._alpha.shape, 2, 2, _ATTEMPTS)
        one, other = _gamma(self._alpha, u[..., 0, :, :]), _gamma(self._beta, u[..., 1, :, :])
        return self._bounds.outward(2.0 * one / (one + other) - 1.0)

    def mode(self) -> Tensor:
        before, after = self._alpha - 1.0, self._beta - 1.0
        return self._bounds.outward((before - after) / (before + after).clamp(min=1e-12))

    def log_prob(self, action: Tensor) -> Tensor:
        x = (_within(self._bounds.inward(action)) + 1.0) / 2.0
        density = (self._alpha - 1.0) * x.log() + (self._beta - 1.0) * torch.log1p(-x) - self._log_beta()
        return (density - self._log_width()).sum(-1)

    def entropy(self) -> Tensor:
        a, b = self._alpha, self._beta
        both = (a + b - 2.0) * torch.digamma(a + b)
        own = (a - 1.0) * torch.digamma(a) + (b - 1.0) * torch.digamma(b)
        return (self._log_beta() - own + both + self._log_width()).sum(-1)

    def kl(self, other: Self) -> Tensor:
        a, b = self._alpha - other._alpha, self._beta - other._beta
        shared = (a + b) * torch.digamma(self._alpha + self._beta)
        return (
            other._log_beta()
            - self._log_beta()
            + a * torch.digamma(self._alpha)
            + b * torch.digamma(self._beta)
            - shared
        ).sum(-1)

    def _log_beta(self) -> Tensor:
        # Large parameters leave a small difference of large terms.
        a, b = self._alpha.double(), self._beta.double()
        return (torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)).to(self._alpha.dtype)

    def _log_width(self) -> Tensor:
        return self._bounds.log_scale + math.log(2.0)

    def parameters(self) -> Tensor:
        return torch.cat([self._alpha, self._beta], -1)


def _gamma(shape: Tensor, u: Tensor) -> Tensor:
    """Gives gamma variates [...] of `shape` [...], at least 1, from uniforms u [..., 2, attempts].

    The method of Marsaglia and Tsang (2000): the first attempt that is accepted. Each is with probability 0.95 or more;
    where none is (1 in 10**8, less than float32 can tell) the middle of the proposals stands in.
    """
    d = (shape - 1.0 / 3.0).unsqueeze(-1)
    z = torch.special.ndtri(u[..., 0, :])
    base = 1.0 + z / (3.0 * d.sqrt())
    v = base.clamp(min=1e-4) ** 3
    accepted = (base > 0.0) & (u[..., 1, :].log() < 0.5 * z * z + d * (1.0 - v + v.log()))
    chosen = v.gather(-1, accepted.float().argmax(-1, keepdim=True))
    return (d * torch.where(accepted.any(-1, keepdim=True), chosen, 1.0)).squeeze(-1)
