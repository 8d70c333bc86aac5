"""A2C, the synchronous form of A3C (Mnih et al. 2016): one gradient step on each batch, at policy lag 0.

Deviation: the value loss is the plain mean squared error, so that `value_weight` 0.5 weighs ½ of it. An update whose
loss or gradient is not finite brings all back to where it began.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from common.rl.algorithms.base import FlatOptimizer, NonFiniteUpdate, OptimizerConfig, scheduled
from common.rl.batch import Batch
from common.rl.ops import policy_gradient as losses
from common.rl.ops.normalize import RewardScaler
from common.rl.ops.returns import gae, next_values
from common.rl.policy import Policy
from common.rl.settings import read_settings

DEFAULT_OPTIMIZER = OptimizerConfig(name="rmsprop", lr=7e-4, eps=1e-5, alpha=0.99, max_grad_norm=0.5)
_METRICS = ("policy_loss", "value_loss", "entropy", "explained_variance", "grad_norm")


class A2CConfig(BaseModel):
    """The `algorithm` section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "a2c"
    discount: float = Field(0.99, ge=0, le=1)
    lam: float = Field(1.0, ge=0, le=1)
    value_weight: float = Field(0.5, ge=0)
    entropy: float = Field(0.01, ge=0)
    normalize_advantages: bool = False
    normalize_returns: bool = False


class A2C:
    """See the module; one instance owns the optimiser."""

    def __init__(self, algorithm: dict[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        self._config = read_settings(A2CConfig, algorithm, "algorithm")
        self._policy = policy
        self._optimizer = FlatOptimizer(optimizer.over(DEFAULT_OPTIMIZER), policy)
        scales = self._config.normalize_returns
        self._scaler = RewardScaler(self._config.discount, self._optimizer.flat.device) if scales else None

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Takes one step over the whole batch; `progress` 0..1 is how much of the job is done."""
        weights, before = self._optimizer.flat.clone(), self.state_dict()
        lr = scheduled(self._optimizer.config.lr, self._optimizer.config.lr_schedule, progress)
        values = self._step(batch, lr).tolist()
        metrics = dict(zip(_METRICS, values, strict=True))
        if not all(map(math.isfinite, values)):
            self._optimizer.flat.copy_(weights)
            self.load_state_dict(before)
            raise NonFiniteUpdate(
                f"a loss or gradient of this batch is not finite: {metrics}; the update was undone",
                "look for non-finite observations or rewards, or lower learner.lr",
            )
        self._policy.fold({name: x[:-1].flatten(0, 1) for name, x in batch.observation.items()})
        return {**metrics, "lr": lr}

    def _step(self, batch: Batch, lr: float) -> torch.Tensor:
        """Takes the gradient step and gives its metrics, [len(_METRICS)]."""
        config, mask = self._config, batch.valid
        outputs = self._policy.unroll(batch.observation, batch.first, batch.state)
        value = outputs.values[:-1]
        with torch.no_grad():
            final = None
            if batch.final_index is not None:
                final = self._policy.values_of_final(outputs, batch.final, batch.final_index)
            after = next_values(outputs.values, batch.final_index, final)
            reward = batch.reward
            if self._scaler is not None:
                reward = self._scaler.scale(reward, batch.terminated | batch.truncated, mask)
            ends = (batch.terminated, batch.truncated, mask)
            advantage = gae(reward, value, after, *ends, config.discount, config.lam)
            target = value + advantage
            explained = losses.explained_variance(value, target, mask)
            if config.normalize_advantages:
                advantage = losses.standardized(advantage, mask)
        policy_loss = losses.policy_gradient(outputs.distribution.log_prob(batch.action), advantage, mask)
        value_loss = losses.value_loss(value, target, mask)
        entropy = losses.masked_mean(outputs.distribution.entropy(), mask)
        loss = policy_loss + config.value_weight * value_loss - config.entropy * entropy
        norm = self._optimizer.step(loss, lr)
        return torch.stack([policy_loss.detach(), value_loss.detach(), entropy.detach(), explained, norm])

    def state_dict(self) -> dict[str, Any]:
        """Gives the optimiser and the return statistics."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict()}
        if self._scaler is not None:
            state["returns"] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["returns"])
