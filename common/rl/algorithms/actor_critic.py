"""What the actor-critic family shares: its settings, the rewards it learns from, and an update as one transaction.

Knows no estimator and no policy loss: an algorithm's own file says those, and calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.errors import ConfigError
from common.rl import ranks
from common.rl.algorithms.base import FlatOptimizer, NonFiniteUpdate, OptimizerConfig, numbers_of
from common.rl.algorithms.curiosity import Curiosity, CuriosityConfig
from common.rl.batch import Batch
from common.rl.ops.returns import next_values
from common.rl.ops.rewards import Clip, clipped
from common.rl.policy import Policy, Valued

Metrics = dict[str, Tensor]
# What a step of training gives: value targets [T, B], which of them were learned from (None: all), scalar metrics.
Trained = tuple[Tensor, Tensor | None, Metrics]


class ActorCriticConfig(BaseModel):
    """The part of the `algorithm` section that every actor-critic has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    discount: float = Field(0.99, ge=0, le=1, description="what a reward is worth one step later")
    lam: float = Field(1.0, ge=0, le=1, description="λ of the trace: 1: whole returns; 0: one step and a value")
    value_weight: float = Field(0.5, ge=0, description="weight of the value loss")
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    reward_scale: float = Field(1.0, gt=0, description="what rewards are multiplied by before they are clipped")
    reward_clip: Clip = Field(
        "none", description="abs_one: to ±1; soft_asymmetric: 5 tanh above zero, 0.3 tanh below it"
    )
    curiosity: CuriosityConfig | None = Field(
        None, description="intrinsic reward by ICM: weight, network, hidden, forward_weight, lr; null: none"
    )


def refuse_thresholds(algorithm: Mapping[str, Any], *keys: str) -> None:
    """Raises ConfigError if one of V-trace's `keys` is set: for an algorithm that goes without it."""
    for key in keys:
        if key in algorithm:
            text = f"algorithm.{key}={algorithm[key]!r} does nothing with algorithm.vtrace=false"
            raise ConfigError(text, "set algorithm.vtrace to true, or leave it out")


class ActorCritic:
    """A policy, its optimiser and its curiosity: the state of one algorithm. `seed` is the curiosity's."""

    def __init__(self, config: ActorCriticConfig, optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        self._config = config
        self.policy = policy
        self.optimizer = FlatOptimizer(optimizer, policy)
        chosen = config.curiosity
        # An action mask is no part of the world: it says of an action whether it could be taken.
        env = replace(policy.env, observations=policy.encoded)
        self._curiosity = None if chosen is None else Curiosity(chosen, env, seed, self.optimizer.flat.device)

    def rewards(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Gives the rewards [T, B] to learn from, and what the curiosity, which takes its step here, has to say."""
        reward = clipped(batch.reward * self._config.reward_scale, self._config.reward_clip)
        if self._curiosity is None:
            return reward, {}
        intrinsic, metrics = self._curiosity.learn(batch)
        return reward + intrinsic, metrics

    @torch.no_grad()
    def values(self, outputs: Valued, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gives V before and after each step, [T, B] both, in the environment's units and without a gradient."""
        final = self.policy.values_of_final(outputs, batch)
        value = outputs.values.detach()
        return value[:-1], next_values(value, batch.final_index, final)

    def update(self, batch: Batch, step: Callable[[], Trained]) -> dict[str, float]:
        """Runs `step`, which trains, and gives its metrics as numbers.

        On several ranks a metric is the mean of theirs, by valid steps. If one is not finite, parameters and state
        become what they were and NonFiniteUpdate is raised.
        """
        weights, before = self.optimizer.flat.clone(), self.state_dict()
        target, learned, scalars = step()
        try:
            metrics = numbers_of(scalars, ranks.weight(batch.reward, batch.valid))
        except NonFiniteUpdate:
            self.optimizer.flat.copy_(weights)
            self.load_state_dict(before)
            raise
        self.policy.fold(batch)
        self.policy.fold_targets(target, learned)
        return metrics

    def acting(self, steps: int, progress: float) -> dict[str, float]:
        """Gives nothing: acting needs the weights alone."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Gives the optimiser, and the curiosity if there is one."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self._curiosity is not None:
            state["curiosity"] = self._curiosity.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self._curiosity is not None:
            self._curiosity.load_state_dict(state["curiosity"])
