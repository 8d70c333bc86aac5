"""Heads: which distribution an action space gets, how many numbers it takes from a network, and action masks.

Knows no network and no observation. A space of several parts gets a head for each, and their joint distribution.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ConfigError
from common.rl.bounded import Beta, Bounds, TanhNormal, has_bounds
from common.rl.distributions import (
    LOWEST,
    Bernoulli,
    Categorical,
    DiagNormal,
    Distribution,
    Joint,
    MultiCategorical,
)
from common.types import ActionSpec

Kind = Literal["normal", "tanh_normal", "beta"]
_LOG_STD = (-20.0, 2.0)


def torch_dtype(dtype: str) -> torch.dtype:
    """Gives torch's name of a numpy dtype."""
    return torch.from_numpy(np.zeros(0, np.dtype(dtype))).dtype


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many numbers a head deals in.

    `outputs` it takes from the network, `free` standard deviations beside them; `parameters` is the size of
    `Distribution.parameters()`, `noise` the uniforms of one sample, and `choices` the entries of an action mask: the
    choices of each component, in order.
    """

    outputs: int
    free: int
    parameters: int
    noise: int
    choices: int


class Head(nn.Module):
    """Reads a network's output as distributions over an action space; it has no weights of its own.

    `distribution` and `sigma` are for a Box, as the config's `network` section has them.
    """

    def __init__(
        self,
        action: ActionSpec,
        distribution: Kind = "normal",
        sigma: Literal["free", "state"] = "free",
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.action = action
        self.kind = distribution
        self.parts: list[Head] = [Head(part, distribution, sigma, log_std_init) for part in action.parts]
        # For `.to`, which has bounds to move; a ModuleList would hide the parts' type.
        self._modules_of_parts = nn.ModuleList(self.parts)
        own = _sizes(action, distribution, sigma)
        self.sizes: Sizes = _total([part.sizes for part in self.parts]) if self.parts else own
        self._log_std_init = log_std_init
        self._bounds = _bounds(action, distribution) if action.kind == "box" and distribution != "normal" else None

    def distribution(self, outputs: Tensor, log_std: Tensor | None = None, mask: Tensor | None = None) -> Distribution:
        """Gives π of a network's outputs [..., outputs], `log_std` [free], and a mask [..., choices] of what may be."""
        kind = self.action.kind
        if kind == "box":
            return self._of_box(outputs, log_std)
        if kind == "tuple":
            return self._joint(outputs, log_std, mask)
        logits = outputs if mask is None else outputs.masked_fill(~mask, LOWEST)
        if kind == "discrete":
            return Categorical(logits)
        if kind == "multi_binary":
            return Bernoulli(logits, self.action.shape)
        return MultiCategorical(logits, self.action.n, self.action.shape)

    def restore(self, parameters: Tensor) -> Distribution:
        """Gives the distribution whose `parameters()` these are, [..., parameters]."""
        if self.action.kind == "tuple":
            sizes = [part.sizes.parameters for part in self.parts]
            pairs = zip(self.parts, torch.split(parameters, sizes, -1), strict=True)
            return self._side_by_side([part.restore(own) for part, own in pairs])
        if self.action.kind != "box":
            return self.distribution(parameters)
        return self._box(*parameters.chunk(2, -1))

    def _of_box(self, outputs: Tensor, log_std: Tensor | None) -> Distribution:
        if self.sizes.free:
            assert log_std is not None
            return self._box(outputs, log_std)
        one, other = outputs.chunk(2, -1)
        if self.kind == "beta":
            return self._box(1.0 + functional.softplus(one), 1.0 + functional.softplus(other))
        return self._box(one, (other + self._log_std_init).clamp(*_LOG_STD))

    def _box(self, one: Tensor, other: Tensor) -> Distribution:
        if self._bounds is None:
            return DiagNormal(one, other, self.action.shape)
        return (Beta if self.kind == "beta" else TanhNormal)(one, other, self._bounds)

    def _joint(self, outputs: Tensor, log_std: Tensor | None, mask: Tensor | None) -> Distribution:
        found, at, free, choice = [], 0, 0, 0
        for part in self.parts:
            sizes = part.sizes
            own = None if log_std is None else log_std[free : free + sizes.free]
            allowed = None if mask is None else mask[..., choice : choice + sizes.choices]
            found.append(part.distribution(outputs[..., at : at + sizes.outputs], own, allowed))
            at, free, choice = at + sizes.outputs, free + sizes.free, choice + sizes.choices
        return self._side_by_side(found)

    def _side_by_side(self, parts: list[Distribution]) -> Distribution:
        shapes = [part.action.shape for part in self.parts]
        return Joint(parts, shapes, [part.sizes.noise for part in self.parts], torch_dtype(self.action.dtype))


def _sizes(action: ActionSpec, distribution: Kind, sigma: Literal["free", "state"]) -> Sizes:
    k = action.size
    if action.kind == "box":
        free = k if sigma == "free" and distribution != "beta" else 0
        return Sizes(2 * k - free, free, 2 * k, k * (Beta.noise if distribution == "beta" else 1), 0)
    choices = k if action.kind == "multi_binary" else sum(action.n)
    return Sizes(choices, 0, choices, k, choices)


def _total(parts: list[Sizes]) -> Sizes:
    return Sizes(*(sum(column) for column in zip(*map(astuple, parts), strict=True)))


def _bounds(action: ActionSpec, distribution: Kind) -> Bounds:
    if not has_bounds(action.low, action.high):
        raise ConfigError(
            f"network.distribution={distribution!r} wants finite bounds, low below high; the actions lie in "
            f"{action.low} to {action.high}",
            "set it to normal",
        )
    return Bounds(action.low, action.high, action.shape)
