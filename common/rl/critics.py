"""What actors and critics of the replayed families are made of: image encoders, and an ensemble of MLPs behind them.

Owns which parts of the `network` section such a network takes: images go through a convolution, and its features, all
flat observations and, for a critic, the action together through MLPs of `hidden`. Knows no loss and no exploration.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.rl.bounded import Bounds, has_bounds
from common.rl.dense import Ensemble
from common.rl.networks import Inputs, NetworkConfig, Trunk, read_network, width_of
from common.types import ActionSpec, ArraySpec, EnvSpec

_FOR_OTHERS = ("lstm", "gru", "shared", "last_action", "last_reward", "action_mask", "distribution", "sigma", "popart")

_CRITICS = 0x5AC


def feed_forward(network: Mapping[str, Any], algorithm: str, *unread: str) -> NetworkConfig:
    """Validates the `network` section; a key that these networks, or this one of them, do not read is a ConfigError."""
    config = read_network(network)
    for key in (*_FOR_OTHERS, *unread):
        if key in network:
            raise ConfigError(f"network.{key}={network[key]!r} says nothing to {algorithm}", "leave it out")
    return config


def bounds_of(env: EnvSpec, algorithm: str) -> Bounds:
    """Gives the box that actions lie in; what is no Box, or is unbounded, is a ConfigError."""
    action = env.action
    if action.kind != "box":
        raise ConfigError(
            f"algorithm.name: {algorithm} takes Box actions, {env.id!r} has {action.kind} ones",
            "choose sac or dqn for one discrete action, ppo for any other kind",
        )
    if not has_bounds(action.low, action.high):
        raise ConfigError(
            f"algorithm.name: {algorithm} wants finite bounds, low below high; {env.id!r} has actions in "
            f"{action.low} to {action.high}",
            "wrap the environment in one that rescales its actions, or choose ppo",
        )
    return Bounds(action.low, action.high, action.shape)


def unit_box(size: int) -> ActionSpec:
    """Gives the Box of `size` components within ±1 that networks and log-probabilities are in."""
    return ActionSpec("box", "<f4", (size,), low=(-1.0,) * size, high=(1.0,) * size)


class Body(nn.Module):
    """`members` networks of one design over what `inputs` gives, and `extra` numbers beside it (an action).

    The image encoder, where there are images, is one for all members; what follows is each member's own.
    """

    def __init__(self, inputs: Inputs, config: NetworkConfig, members: int, extra: int, outputs: int) -> None:
        super().__init__()
        own = [spec.name for spec in inputs.flat if spec.name in config.encoders]
        if own:
            message = f"network.encoders.{own[0]}: all flat observations go through the MLPs of network.hidden"
            raise ConfigError(message, "leave it out")
        self.trunk, seen = _image_trunk(inputs, config)
        self._images = len(inputs.images)
        width = seen + inputs.width + extra
        self.layers = Ensemble(members, (width, *config.hidden, outputs), config.activation)

    def features(self, inputs: list[Tensor]) -> Tensor:
        """Gives [N, F] of what `Inputs` gave: what depends on the observation alone, to be computed once."""
        parts = inputs if self.trunk is None else [self.trunk(inputs[: self._images]), *inputs[self._images :]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def forward(
        self, features: Tensor, extra: Tensor | None = None, frozen: bool = False, members: int | None = None
    ) -> Tensor:
        """Gives [members, N, outputs]; `frozen` and `members` as `Ensemble` has them."""
        x = features if extra is None else torch.cat([features, extra], -1)
        return self.layers(x, frozen, members)  # type: ignore[no-any-return]


def least(values: Tensor) -> Tensor:
    """Gives of values [members, ...] the least [...]; a gradient goes to the member that gave it."""
    return functools.reduce(torch.minimum, values.unbind())


def critics_of(inputs: Inputs, config: NetworkConfig, members: int, extra: int, outputs: int, seed: int) -> Body:
    """Builds critics whose initial weights depend on `seed` alone, and not as an actor's do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed ^ _CRITICS)
        return Body(inputs, config, members, extra, outputs)


class Critic(nn.Module):
    """Critics that an actor holds, for the first priorities of what it collects (Horgan et al. 2018); not trained."""

    spec = tuple(ArraySpec(name, "<f4", ()) for name in ("q_taken", "q_bootstrap"))

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)

    def estimates(self, inputs: list[Tensor], taken: Tensor, best: Tensor) -> dict[str, Tensor]:
        """Gives of actions [N, k] within ±1 what a table takes: the mean critic's value of those `taken`, the least
        one's of the `best`."""
        features = self.body.features(inputs)
        bootstrap = least(self.body(features, best).mean(-1))
        return {"q_taken": self.body(features, taken).mean((0, 2)), "q_bootstrap": bootstrap}

    def estimates_of_choices(self, inputs: list[Tensor], taken: Tensor, chances: Tensor) -> dict[str, Tensor]:
        """Gives the same of choices [N], and of what a policy of `chances` [N, A] expects."""
        values = self.body(self.body.features(inputs))
        bootstrap = (chances * least(values)).sum(-1)
        return {"q_taken": values.mean(0).gather(-1, taken.unsqueeze(-1)).squeeze(-1), "q_bootstrap": bootstrap}


def _image_trunk(inputs: Inputs, config: NetworkConfig) -> tuple[Trunk | None, int]:
    """Gives the encoder of images, where there are some, and how many features it makes."""
    if not inputs.images:
        return None, 0
    names = {spec.name for spec in inputs.images}
    encoders = {name: encoder for name, encoder in config.encoders.items() if name in names}
    images = config.model_copy(update={"encoders": encoders, "normalize_observations": False})
    own = Inputs(inputs.images, images)
    trunk = Trunk(own, images)
    return trunk, width_of(trunk, own)
