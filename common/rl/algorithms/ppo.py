"""PPO (Schulman et al. 2017) and APPO (Petrenko et al. 2020), for feed-forward and recurrent policies.

APPO is PPO on asynchronous data: ratios are clipped to 1/(1+ε) … 1+ε, `replay.max_policy_lag` bounds how old a step
may be, and `vtrace` makes targets and advantages by V-trace instead of GAE; the surrogate's own ratio is then the
policy term's. `rollback` is Truly-PPO's surrogate in place of the clip (Wang et al. 2019). `adaptive_kl` is the KL by
which the learning rate is steered: beyond twice that it falls by a third, below half it grows by half (Rudin et al.
2022).

Deviations: the value loss is the plain mean squared error, so that `value_weight` 0.5 weighs ½ of it; values for the
advantages are computed anew by the learner, unless `values` says to take the behaviour's. A recurrent policy's
minibatches are whole columns, unrolled from the state that came with them; a feed-forward one's are single steps,
shuffled.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.errors import ConfigError
from common.rl import ranks
from common.rl.algorithms.actor_critic import ActorCritic, ActorCriticConfig, Trained, refuse_thresholds
from common.rl.algorithms.base import Batches, NonFiniteUpdate, OptimizerConfig, scheduled
from common.rl.batch import Batch
from common.rl.distributions import Distribution
from common.rl.minibatches import Order, valid_places
from common.rl.ops import policy_gradient as losses
from common.rl.ops.returns import gae
from common.rl.ops.vtrace import Thresholds, vtrace
from common.rl.policy import Policy, build_policy
from common.rl.settings import read_settings
from common.types import EnvSpec

DEFAULT_OPTIMIZER = OptimizerConfig(name="adam", lr=3e-4, eps=1e-5, max_grad_norm=0.5)
APPO_OPTIMIZER = OptimizerConfig(name="adam", lr=1e-4, eps=1e-6, max_grad_norm=4.0)
_LOSSES = ("policy_loss", "value_loss", "entropy", "grad_norm")
_RATES = (0.01, 10.0)  # how far an adaptive rate may go from the one that is set


class RollbackConfig(BaseModel):
    """`algorithm.rollback`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    radius: float = Field(0.03, gt=0, description="the KL(μ ‖ π) that a step may move freely")
    slope: float = Field(5.0, gt=0, description="weight of the KL of a step that went further and gained by it")


class PPOConfig(ActorCriticConfig):
    """The `algorithm` section."""

    lam: float = Field(0.95, ge=0, le=1, description="λ of the generalised advantages")
    clip: float = Field(0.2, gt=0, description="ε of the clipped ratio")
    clip_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: ε falls to 0 at the end of the job"
    )
    epochs: int = Field(10, gt=0, description="passes over each batch")
    minibatches: int = Field(4, gt=0, description="minibatches per pass")
    value_clip: float | None = Field(None, gt=0, description="how far a value may move in one update; null: no limit")
    values: Literal["newest", "behaviour"] = Field(
        "newest", description="whose values advantages are made of; behaviour: those that acting gave, a pass less"
    )
    normalize_advantages: bool = Field(True, description="to mean 0 and std 1, in each minibatch")
    target_kl: float | None = Field(
        None, gt=0, description="the update ends after the first pass whose mean KL exceeds this; null: never"
    )
    adaptive_kl: float | None = Field(
        None, gt=0, description="the mean KL of an update by which the learning rate is steered; null: it is not"
    )
    rollback: RollbackConfig | None = Field(
        None, description="Truly-PPO in place of the clip: radius of the KL, slope of the penalty; null: the clip"
    )


class APPOConfig(PPOConfig):
    """The `algorithm` section: PPO's, and V-trace."""

    clip: float = Field(0.1, gt=0, description="ε: ratios are clipped to 1/(1+ε) … 1+ε")
    epochs: int = Field(1, gt=0, description="passes over each batch")
    entropy: float = Field(0.003, ge=0, description="weight of the entropy bonus")
    vtrace: bool = Field(False, description="targets and advantages by V-trace, not by generalised advantages")
    rho: float = Field(1.0, gt=0, description="where V-trace cuts the ratios of its errors")
    c: float = Field(1.0, gt=0, description="where V-trace cuts the ratios of its trace")


@dataclass(frozen=True, slots=True)
class _Targets:
    """What a step is trained towards, all of one shape: [N] or [T, B]; values in the units of the value loss."""

    action: Tensor
    extras: dict[str, Tensor]
    value: Tensor
    advantage: Tensor
    target: Tensor
    mask: Tensor | None

    def map(self, pick: Callable[[Tensor], Tensor]) -> _Targets:
        """Gives the part of each that `pick` takes."""
        return _Targets(
            pick(self.action),
            {name: pick(x) for name, x in self.extras.items()},
            pick(self.value),
            pick(self.advantage),
            pick(self.target),
            None if self.mask is None else pick(self.mask),
        )


_Minibatch = tuple[Distribution, Tensor, _Targets]
_Range = tuple[float, float]
_Move = tuple[Tensor, Tensor | None]


class _Surrogate:
    """What both do with a batch; owns the random order of minibatches. `thresholds` None makes targets by GAE."""

    def __init__(self, config: PPOConfig, thresholds: Thresholds | None, core: ActorCritic, seed: int) -> None:
        _check_kl(config)
        if config.values == "behaviour":
            _check_behaviour(core.policy, thresholds)
        self._config = config
        self._thresholds = thresholds
        self._core = core
        self._order = Order(config.minibatches, seed, core.optimizer.flat.device)
        self._rate = 1.0

    def learn(self, batch: Batch, progress: float, clip: _Range) -> dict[str, float]:
        lr, order = self._core.optimizer.rate(progress) * self._rate, self._order.get_state()
        try:
            metrics = self._core.update(batch, lambda: self._update(batch, lr, clip))
        except NonFiniteUpdate:
            self._order.set_state(order)
            raise
        if self._config.adaptive_kl is not None:
            self._steer(metrics["kl"] / self._config.adaptive_kl)
        return {**metrics, "lr": lr}

    def _steer(self, excess: float) -> None:
        factor = 1.0 / 1.5 if excess > 2.0 else 1.5 if excess < 0.5 else 1.0
        self._rate = min(max(self._rate * factor, _RATES[0]), _RATES[1])

    def _update(self, batch: Batch, lr: float, clip: _Range) -> Trained:
        config = self._config
        reward, explored = self._core.rewards(batch)
        target, explained, targets = self._targets(batch, reward)
        places = None if self._core.policy.recurrent else valid_places(batch)
        rows: list[Tensor] = []
        moves: list[_Move] = []
        for _ in range(config.epochs):
            begun = len(moves)
            for distribution, value, part in self._minibatches(batch, targets, places):
                row, move = self._step(distribution, value, part, clip, lr)
                rows.append(row)
                moves.append(move)
            # Not "greater than": a nan must end the update too.
            if config.target_kl and not _kl(moves[begun:]) <= config.target_kl:
                break
        metrics = dict(zip(_LOSSES, _averaged(rows, moves), strict=True))
        log_ratio, mask = _joined(moves)
        metrics["kl"] = losses.approximate_kl(log_ratio, mask)
        metrics["clip_fraction"] = losses.outside_fraction(log_ratio, *clip, mask)
        metrics["explained_variance"] = explained
        metrics["gradient_steps"] = torch.tensor(float(len(rows)), device=explained.device)
        return target, batch.valid, {**metrics, **explored}

    @torch.no_grad()
    def _targets(self, batch: Batch, reward: Tensor) -> tuple[Tensor, Tensor, _Targets]:
        """Gives the value targets, how much of their variance the values explain, and what each step is trained on."""
        config, policy = self._config, self._core.policy
        ends = (batch.terminated, batch.truncated, batch.valid, config.discount, config.lam)
        if self._thresholds is None:
            valued = policy.bootstrapped if config.values == "behaviour" else policy.valued
            value, after = self._core.values(valued(batch), batch)
            advantage = gae(reward, value, after, *ends)
            target = value + advantage
        else:
            outputs = policy.unroll(batch)
            value, after = self._core.values(outputs, batch)
            log_ratio = outputs.distribution.log_prob(batch.action) - batch.extras["log_prob"]
            traced = vtrace(log_ratio, reward, value, after, *ends, self._thresholds)
            advantage, target = traced.unweighted, traced.target
        explained = losses.explained_variance(value, target, batch.valid)
        old = policy.normalized(value)
        advantage = policy.normalized(value + advantage) - old
        targets = _Targets(batch.action, batch.extras, old, advantage, policy.normalized(target), batch.valid)
        return target, explained, targets

    def _minibatches(self, batch: Batch, targets: _Targets, places: Tensor | None) -> Iterator[_Minibatch]:
        """Runs the policy over one epoch's minibatches, each only once the step before it has been taken."""
        policy = self._core.policy
        if policy.recurrent:
            yield from self._columns(batch, targets)
            return
        epoch = self._order.steps(batch.reward.numel(), places)
        # Gathered once per epoch: minibatches are then views.
        rows = {name: x[:-1].flatten(0, 1)[epoch.chosen] for name, x in policy.rows(batch).items()}
        flat = replace(targets, mask=None).map(lambda x: x.flatten(0, 1)[epoch.chosen])
        flat = flat if epoch.counted is None else replace(flat, mask=epoch.counted)
        for start, stop in pairwise(epoch.bounds):
            distribution, value = policy.evaluate({name: x[start:stop] for name, x in rows.items()})
            yield distribution, value, flat.map(operator.itemgetter(slice(start, stop)))

    def _columns(self, batch: Batch, targets: _Targets) -> Iterator[_Minibatch]:
        # Targets are made: finding each column's own last observations would be a wait for the device in every step.
        batch = replace(batch, final_index=None, final={})
        for index, counts in self._order.columns(batch.reward.shape[1]):
            outputs = self._core.policy.unroll(batch.columns(index))
            part = targets.map(operator.itemgetter((slice(None), index)))
            if not counts:
                part = replace(part, mask=torch.zeros_like(part.value, dtype=torch.bool))
            yield outputs.distribution, outputs.values[:-1], part

    def _step(
        self, distribution: Distribution, value: Tensor, part: _Targets, clip: _Range, lr: float
    ) -> tuple[Tensor, _Move]:
        """Takes one gradient step; gives its _LOSSES, and log π/μ of its steps with their mask."""
        config, mask = self._config, part.mask
        log_ratio = distribution.log_prob(part.action) - part.extras["log_prob"]
        if mask is not None:
            # Before the exponential: a loss of zero would pass a gradient of 0 * inf on.
            log_ratio = torch.where(mask, log_ratio, 0.0)
        policy_loss = self._policy_loss(distribution, log_ratio, part, clip)
        value = self._core.policy.normalized(value)
        if config.value_clip is None:
            value_loss = losses.value_loss(value, part.target, mask)
        else:
            value_loss = losses.clipped_value_loss(value, part.value, part.target, config.value_clip, mask)
        loss = policy_loss + config.value_weight * value_loss
        with torch.set_grad_enabled(config.entropy > 0):
            entropy = losses.masked_mean(distribution.entropy(), mask)
        if config.entropy:
            loss = loss - config.entropy * entropy
        norm = self._core.optimizer.step(loss, lr, ranks.weight(value, mask))
        row = torch.stack([policy_loss.detach(), value_loss.detach(), entropy.detach(), norm])
        return row, (log_ratio.detach().flatten(), None if mask is None else mask.flatten())

    def _policy_loss(self, distribution: Distribution, log_ratio: Tensor, part: _Targets, clip: _Range) -> Tensor:
        config, mask = self._config, part.mask
        advantage = losses.standardized(part.advantage, mask) if config.normalize_advantages else part.advantage
        if config.rollback is None:
            return losses.clipped_surrogate(log_ratio.exp(), advantage, *clip, mask)
        kl = self._core.policy.behaviour(part.extras).kl(distribution)
        settings = config.rollback
        return losses.rollback_surrogate(log_ratio.exp(), advantage, kl, settings.radius, settings.slope, mask)

    def state_dict(self) -> dict[str, Any]:
        """Gives the core's state, the generator's and the steered rate."""
        return {**self._core.state_dict(), "generator": self._order.get_state(), "rate": self._rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self._core.load_state_dict(state)
        self._order.set_state(state["generator"])
        self._rate = float(state["rate"])


def _check_kl(config: PPOConfig) -> None:
    """Raises ConfigError for a key of the KL where there is none: each step measures that of the steps before it."""
    if config.adaptive_kl is not None and config.epochs * config.minibatches == 1:
        text = f"algorithm.adaptive_kl={config.adaptive_kl} sees no KL: an update of one step has none before it"
        raise ConfigError(text, "set algorithm.epochs or algorithm.minibatches above 1, or leave it out")
    if config.target_kl is not None and config.epochs == 1:
        text = f"algorithm.target_kl={config.target_kl} does nothing: an update of one pass ends after it anyway"
        raise ConfigError(text, "set algorithm.epochs above 1, or leave it out")


def _check_behaviour(policy: Policy, thresholds: Thresholds | None) -> None:
    """Raises ConfigError where the behaviour's values do not do."""
    if policy.recurrent:
        text = (
            "algorithm.values='behaviour' has no state to value the step after an unroll from, with network.lstm or gru"
        )
    elif thresholds is not None:
        text = "algorithm.values='behaviour' saves nothing with algorithm.vtrace=true, which computes them anew anyway"
    else:
        return
    raise ConfigError(text, "leave algorithm.values out")


def _averaged(rows: list[Tensor], moves: list[_Move]) -> Tensor:
    """Gives the means of _LOSSES over an update's minibatches, each by its steps: a rank has none of some of them."""
    steps = [x.new_full((), x.numel()) if mask is None else mask.sum().to(x.dtype) for x, mask in moves]
    each, weight = torch.stack(rows), torch.stack(steps)
    weight = weight / weight.sum().clamp(min=1.0)
    # A gradient's norm is that of all ranks together.
    return torch.cat([weight @ each[:, :-1], each[:, -1:].mean(0)])


def _joined(moves: list[_Move]) -> _Move:
    log_ratio = torch.cat([log_ratio for log_ratio, _ in moves])
    if all(mask is None for _, mask in moves):
        return log_ratio, None
    return log_ratio, torch.cat([torch.ones_like(x, dtype=torch.bool) if m is None else m for x, m in moves])


def _kl(moves: list[_Move]) -> Tensor:
    """Gives the mean KL(μ ‖ π) of steps on all ranks, the same on each; a scalar."""
    log_ratio, mask = _joined(moves)
    return ranks.mean(losses.approximate_kl(log_ratio, mask), ranks.weight(log_ratio, mask))


class PPO:
    """See the module."""

    batches: ClassVar[Batches] = "unrolls"
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Policy:
        values = algorithm.get("values") == "behaviour"
        return build_policy(network, env, seed, parameters=algorithm.get("rollback") is not None, values=values)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        self._config = read_settings(PPOConfig, algorithm, "algorithm")
        core = ActorCritic(self._config, optimizer.over(DEFAULT_OPTIMIZER), policy, seed)
        self._surrogate = own = _Surrogate(self._config, None, core, seed)
        self.acting, self.state_dict, self.load_state_dict = core.acting, own.state_dict, own.load_state_dict

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Trains `epochs` times over the batch; `progress` 0..1 is how much of the job is done."""
        clip = scheduled(self._config.clip, self._config.clip_schedule, progress)
        return self._surrogate.learn(batch, progress, (1.0 - clip, 1.0 + clip))


class APPO:
    """See the module."""

    batches: ClassVar[Batches] = "unrolls"
    priorities: Tensor | None = None
    make_actor = staticmethod(PPO.make_actor)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        self._config = read_settings(APPOConfig, algorithm, "algorithm")
        core = ActorCritic(self._config, optimizer.over(APPO_OPTIMIZER), policy, seed)
        if not self._config.vtrace:
            refuse_thresholds(algorithm, "rho", "c")
        thresholds = Thresholds(self._config.rho, self._config.c) if self._config.vtrace else None
        self._surrogate = own = _Surrogate(self._config, thresholds, core, seed)
        self.acting, self.state_dict, self.load_state_dict = core.acting, own.state_dict, own.load_state_dict

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Trains `epochs` times over the batch; `progress` 0..1 is how much of the job is done."""
        clip = scheduled(self._config.clip, self._config.clip_schedule, progress)
        return self._surrogate.learn(batch, progress, (1.0 / (1.0 + clip), 1.0 + clip))
