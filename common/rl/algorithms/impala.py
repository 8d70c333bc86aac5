"""IMPALA (Espeholt et al. 2018) and LASER (Schmitt et al. 2019): other policies' steps, corrected by V-trace.

Losses are summed over time and averaged over the batch, or summed over both as in the original (`sum_over_batch`).
`reward_clip` is `abs_one` for Atari and `soft_asymmetric` for DMLab-30; last action and last reward are inputs of the
network (`network.last_action`, `network.last_reward`). Without `vtrace` the loss is A3C's (Mnih et al. 2016).

LASER is IMPALA on batches in which `Batch.online` tells fresh columns from replayed ones. Steps beyond `trust_region`
(b, the bound on KL(π ‖ π̃); null: none) are cut, and with them those that follow until the episode ends: they end the
trace and are in neither loss, nor in PopArt's statistics. The entropy is that of online columns alone. π and μ are
compared as normalised log-probabilities, by the behaviour's distribution, which travels with each step.

The defaults are TorchBeast's (Küttler et al. 2019), which ran Atari on one machine.

Deviations of LASER: steps after a cut one are cut too; a replayed unroll starts from the recurrent state that it was
acted with, not from one computed anew; agents share no replay; losses are divided by all columns, whatever was cut: the
steps that stay do not weigh more for it. The default of `trust_region` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from common.rl import ranks
from common.rl.algorithms.actor_critic import ActorCritic, ActorCriticConfig, Metrics, Trained, refuse_thresholds
from common.rl.algorithms.base import Batches, OptimizerConfig
from common.rl.batch import Batch
from common.rl.distributions import Distribution
from common.rl.ops import policy_gradient as losses
from common.rl.ops.trust_region import implied_kl, within
from common.rl.ops.vtrace import Thresholds, vtrace
from common.rl.policy import Policy, build_policy
from common.rl.settings import read_settings
from common.types import EnvSpec

DEFAULT_OPTIMIZER = OptimizerConfig(name="rmsprop", lr=4.8e-4, eps=0.01, alpha=0.99, max_grad_norm=40.0)


class IMPALAConfig(ActorCriticConfig):
    """The `algorithm` section."""

    entropy: float = Field(6e-4, ge=0, description="weight of the entropy bonus")
    rho: float = Field(1.0, gt=0, description="where V-trace cuts the ratios of its errors")
    c: float = Field(1.0, gt=0, description="where V-trace cuts the ratios of its trace")
    pg_rho: float = Field(1.0, gt=0, description="where the ratios of the policy's loss are cut")
    vtrace: bool = Field(True, description="false: every ratio is 1, as if π had acted; what V-trace is held against")
    sum_over_batch: bool = Field(False, description="losses are summed over the batch too, not averaged")


class LASERConfig(IMPALAConfig):
    """The `algorithm` section: IMPALA's, and the bound of the trust region."""

    trust_region: float | None = Field(
        0.1, gt=0, description="b: KL(π ‖ π̃) beyond which a step and the rest of its episode are cut; null: never"
    )


class _VTraceActorCritic:
    """What both do with a batch; `trust_region` None trusts every step."""

    def __init__(self, config: IMPALAConfig, trust_region: float | None, core: ActorCritic) -> None:
        self._config = config
        self._trust_region = trust_region
        self._core = core

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Takes one step over the whole batch, online and replayed; `progress` 0..1 is how much of the job is done."""
        lr = self._core.optimizer.rate(progress)
        return {**self._core.update(batch, lambda: self._step(batch, lr)), "lr": lr}

    @torch.no_grad()
    def _trusted(self, distribution: Distribution, batch: Batch) -> tuple[Tensor | None, Metrics]:
        """Gives the steps to learn from, and how far π is from them and how many they are."""
        if self._trust_region is None:
            return batch.valid, {}
        policy = self._core.policy
        distance = implied_kl(distribution, policy.behaviour(batch.extras), self._config.rho, policy.noise_size)
        kept = within(distance, self._trust_region, batch.terminated, batch.truncated, batch.valid)
        share = losses.masked_mean(kept.float(), batch.valid)
        measured = {"trusted": share, "implied_kl": losses.masked_mean(distance, batch.valid)}
        return kept if batch.valid is None else kept & batch.valid, measured

    def _step(self, batch: Batch, lr: float) -> Trained:
        config, core = self._config, self._core
        reward, explored = core.rewards(batch)
        outputs = core.policy.unroll(batch)
        value, after = core.values(outputs, batch)
        mask, measured = self._trusted(outputs.distribution, batch)
        log_prob = outputs.distribution.log_prob(batch.action)
        log_ratio = log_prob.detach() - batch.extras["log_prob"]
        thresholds = Thresholds(config.rho, config.c, config.pg_rho)
        ends = (batch.terminated, batch.truncated, mask)
        corrected = log_ratio if config.vtrace else torch.zeros_like(log_ratio)
        traced = vtrace(corrected, reward, value, after, *ends, config.discount, config.lam, thresholds)
        normalized = core.policy.normalized
        weight = normalized(value + traced.advantage) - normalized(value)
        error = normalized(outputs.values[:-1]) - normalized(traced.target)
        online = batch.online_steps()
        # The ranks' gradients are averaged, whose columns are equally many: of a sum each must give its own times them.
        scale = float(ranks.size()) if config.sum_over_batch else 1.0 / batch.reward.shape[1]
        policy_loss = -scale * losses.masked_sum(log_prob * weight, mask)
        value_loss = 0.5 * scale * losses.masked_sum(error.square(), mask)
        entropies = outputs.distribution.entropy()
        entropy = scale * losses.masked_sum(entropies, online)
        norm = core.optimizer.step(policy_loss + config.value_weight * value_loss - config.entropy * entropy, lr)
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "grad_norm": norm}
        metrics["entropy"] = losses.masked_mean(entropies, online)
        metrics["kl"] = losses.approximate_kl(log_ratio, mask)
        metrics["clipped"] = losses.masked_mean((log_ratio > math.log(config.rho)).float(), mask)
        metrics["explained_variance"] = losses.explained_variance(value, traced.target, mask)
        return traced.target, mask, {**metrics, **measured, **explored}


class IMPALA:
    """See the module."""

    batches: ClassVar[Batches] = "unrolls"
    mixes: ClassVar[bool] = True
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Policy:
        return build_policy(network, env, seed)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        config = read_settings(IMPALAConfig, algorithm, "algorithm")
        if not config.vtrace:
            refuse_thresholds(algorithm, "rho", "c", "pg_rho")
        core = ActorCritic(config, optimizer.over(DEFAULT_OPTIMIZER), policy, seed)
        self.learn = _VTraceActorCritic(config, None, core).learn
        self.acting, self.state_dict, self.load_state_dict = core.acting, core.state_dict, core.load_state_dict


class LASER:
    """See the module; its actor sends the parameters of its distribution with each step."""

    batches: ClassVar[Batches] = "unrolls"
    mixes: ClassVar[bool] = True
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Policy:
        return build_policy(network, env, seed, parameters=True)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        config = read_settings(LASERConfig, algorithm, "algorithm")
        if not config.vtrace:
            # The trust region has a rho too: it is the same.
            refuse_thresholds(algorithm, "c", "pg_rho", *(() if config.trust_region else ("rho",)))
        core = ActorCritic(config, optimizer.over(DEFAULT_OPTIMIZER), policy, seed)
        self.learn = _VTraceActorCritic(config, config.trust_region, core).learn
        self.acting, self.state_dict, self.load_state_dict = core.acting, core.state_dict, core.load_state_dict
