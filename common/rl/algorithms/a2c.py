"""A2C, the synchronous form of A3C (Mnih et al. 2016): one gradient step on each batch, at policy lag 0.

Deviations: the value loss is the plain mean squared error, so that `value_weight` 0.5 weighs ½ of it; unrolls are of
`rollout.unroll` steps, where the paper has 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from common.rl import ranks
from common.rl.algorithms.actor_critic import ActorCritic, ActorCriticConfig, Trained
from common.rl.algorithms.base import Batches, OptimizerConfig
from common.rl.batch import Batch
from common.rl.ops import policy_gradient as losses
from common.rl.ops.returns import gae
from common.rl.policy import Policy, build_policy
from common.rl.settings import read_settings
from common.types import EnvSpec

DEFAULT_OPTIMIZER = OptimizerConfig(name="rmsprop", lr=7e-4, eps=1e-5, alpha=0.99, max_grad_norm=0.5)


class A2CConfig(ActorCriticConfig):
    """The `algorithm` section."""

    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus")
    normalize_advantages: bool = Field(False, description="to mean 0 and std 1")


class A2C:
    """See the module."""

    batches: ClassVar[Batches] = "unrolls"
    synchronous: ClassVar[bool] = True
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Policy:
        return build_policy(network, env, seed)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        self._config = read_settings(A2CConfig, algorithm, "algorithm")
        self._core = core = ActorCritic(self._config, optimizer.over(DEFAULT_OPTIMIZER), policy, seed)
        self.acting, self.state_dict, self.load_state_dict = core.acting, core.state_dict, core.load_state_dict

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Takes one step over the whole batch; `progress` 0..1 is how much of the job is done."""
        lr = self._core.optimizer.rate(progress)
        return {**self._core.update(batch, lambda: self._step(batch, lr)), "lr": lr}

    def _step(self, batch: Batch, lr: float) -> Trained:
        config, core, mask = self._config, self._core, batch.valid
        reward, explored = core.rewards(batch)
        outputs = core.policy.unroll(batch)
        value, after = core.values(outputs, batch)
        advantage = gae(reward, value, after, batch.terminated, batch.truncated, mask, config.discount, config.lam)
        target = value + advantage
        weight = core.policy.normalized(target) - core.policy.normalized(value)
        if config.normalize_advantages:
            weight = losses.standardized(weight, mask)
        policy_loss = losses.policy_gradient(outputs.distribution.log_prob(batch.action), weight, mask)
        normalized = core.policy.normalized
        value_loss = losses.value_loss(normalized(outputs.values[:-1]), normalized(target), mask)
        entropy = losses.masked_mean(outputs.distribution.entropy(), mask)
        loss = policy_loss + config.value_weight * value_loss - config.entropy * entropy
        norm = core.optimizer.step(loss, lr, ranks.weight(batch.reward, mask))
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "grad_norm": norm}
        metrics["explained_variance"] = losses.explained_variance(value, target, mask)
        return target, mask, {**metrics, **explored}
