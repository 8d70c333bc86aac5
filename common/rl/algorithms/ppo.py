"""PPO (Schulman et al. 2017) for feed-forward and recurrent policies.

Deviations: the value loss is the plain mean squared error, so that `value_weight` 0.5 weighs ½ of it; values for the
advantages are computed anew by the learner, not taken from the behaviour; `normalize_returns` divides rewards by the
running std of discounted returns (Engstrom et al. 2020). A recurrent policy's minibatches are whole columns, unrolled
from the state that came with them; a feed-forward one's are single steps, shuffled.

An update is a transaction: a loss or gradient that is not finite anywhere in it brings all back to where it began.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.rl.algorithms.base import FlatOptimizer, NonFiniteUpdate, OptimizerConfig, scheduled
from common.rl.batch import Batch
from common.rl.distributions import Distribution
from common.rl.ops import policy_gradient as losses
from common.rl.ops.normalize import RewardScaler
from common.rl.ops.returns import gae, next_values
from common.rl.policy import Policy
from common.rl.settings import read_settings

DEFAULT_OPTIMIZER = OptimizerConfig(name="adam", lr=3e-4, eps=1e-5, max_grad_norm=0.5)
_METRICS = ("policy_loss", "value_loss", "entropy", "grad_norm", "kl", "clip_fraction", "explained_variance")


class PPOConfig(BaseModel):
    """The `algorithm` section. `minibatches` is their number per epoch; `value_clip` and `target_kl` are off at None.

    `target_kl` ends the update after the first epoch whose mean approximate KL exceeds it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "ppo"
    discount: float = Field(0.99, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    clip_schedule: Literal["constant", "linear"] = "constant"
    epochs: int = Field(10, gt=0)
    minibatches: int = Field(4, gt=0)
    value_weight: float = Field(0.5, ge=0)
    value_clip: float | None = Field(None, gt=0)
    entropy: float = Field(0.0, ge=0)
    normalize_advantages: bool = True
    normalize_returns: bool = False
    target_kl: float | None = Field(None, gt=0)


@dataclass(frozen=True, slots=True)
class _Targets:
    """What a step is trained towards, all of one shape: [N] or [T, B]."""

    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    mask: Tensor | None

    def map(self, pick: Callable[[Tensor], Tensor]) -> _Targets:
        """Gives the part of each that `pick` takes."""
        return _Targets(
            pick(self.action),
            pick(self.log_prob),
            pick(self.value),
            pick(self.advantage),
            pick(self.target),
            None if self.mask is None else pick(self.mask),
        )


class PPO:
    """See the module; one instance owns the optimiser and the random order of minibatches."""

    def __init__(self, algorithm: dict[str, Any], optimizer: OptimizerConfig, policy: Policy, seed: int) -> None:
        self._config = read_settings(PPOConfig, algorithm, "algorithm")
        self._policy = policy
        self._optimizer = FlatOptimizer(optimizer.over(DEFAULT_OPTIMIZER), policy)
        self._generator = torch.Generator().manual_seed(seed)
        scales = self._config.normalize_returns
        self._scaler = RewardScaler(self._config.discount, self._optimizer.flat.device) if scales else None

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Trains `epochs` times over the batch; `progress` 0..1 is how much of the job is done."""
        weights, before = self._optimizer.flat.clone(), self.state_dict()
        try:
            metrics = self._update(batch, progress)
        except NonFiniteUpdate:
            self._optimizer.flat.copy_(weights)
            self.load_state_dict(before)
            raise
        self._policy.fold({name: x[:-1].flatten(0, 1) for name, x in batch.observation.items()})
        return metrics

    def _update(self, batch: Batch, progress: float) -> dict[str, float]:
        config = self._config
        lr = scheduled(self._optimizer.config.lr, self._optimizer.config.lr_schedule, progress)
        clip = scheduled(config.clip, config.clip_schedule, progress)
        targets = self._targets(batch)
        explained = losses.explained_variance(targets.value, targets.target, targets.mask)
        rows: list[Tensor] = []
        log_ratios: list[Tensor] = []
        for _ in range(config.epochs):
            begun = len(log_ratios)
            for distribution, value, part in self._minibatches(batch, targets):
                row, log_ratio = self._step(distribution, value, part, clip, lr)
                rows.append(row)
                log_ratios.append(log_ratio)
            # Not "greater than": a nan must end the update too.
            if config.target_kl and not losses.approximate_kl(torch.cat(log_ratios[begun:])) <= config.target_kl:
                break
        # One wait for the device, here, for all that the inner loop measured.
        moved = torch.cat(log_ratios)
        last = torch.stack([losses.approximate_kl(moved), losses.clip_fraction(moved, clip), explained])
        table = torch.stack(rows)
        sound, *means = torch.cat([table.isfinite().all().float().view(1), table.mean(0), last]).tolist()
        if not sound:
            raise NonFiniteUpdate(
                "a loss or gradient of this batch is not finite; the update was undone",
                "look for non-finite observations or rewards, or lower learner.lr",
            )
        return {**dict(zip(_METRICS, means, strict=True)), "lr": lr, "gradient_steps": float(len(rows))}

    @torch.no_grad()
    def _targets(self, batch: Batch) -> _Targets:
        outputs = self._policy.unroll(batch.observation, batch.first, batch.state)
        final = None
        if batch.final_index is not None:
            final = self._policy.values_of_final(outputs, batch.final, batch.final_index)
        reward = batch.reward
        if self._scaler is not None:
            reward = self._scaler.scale(reward, batch.terminated | batch.truncated, batch.valid)
        value = outputs.values[:-1]
        after = next_values(outputs.values, batch.final_index, final)
        ends = (batch.terminated, batch.truncated, batch.valid)
        advantage = gae(reward, value, after, *ends, self._config.discount, self._config.lam)
        log_prob = batch.extras["log_prob"]
        return _Targets(batch.action, log_prob, value, advantage, value + advantage, batch.valid)

    def _order(self, n: int) -> Tensor:
        # Drawn on the CPU whatever the device is, so that a resume elsewhere keeps the order.
        return torch.randperm(n, generator=self._generator).to(self._optimizer.flat.device)

    def _minibatches(self, batch: Batch, targets: _Targets) -> Iterator[tuple[Distribution, Tensor, _Targets]]:
        """Runs the policy over one epoch's minibatches, each only once the step before it has been taken."""
        if self._policy.recurrent:
            yield from self._columns(batch, targets)
            return
        rows, columns = batch.reward.shape
        chosen = None if batch.valid is None else batch.valid.flatten().nonzero().squeeze(-1)
        order = self._order(rows * columns if chosen is None else chosen.shape[0])
        chosen = order if chosen is None else chosen[order]
        # Gathered once per epoch: minibatches are then views.
        observation = {name: x[:-1].flatten(0, 1)[chosen] for name, x in batch.observation.items()}
        flat = replace(targets, mask=None).map(lambda x: x.flatten(0, 1)[chosen])
        n, parts = chosen.shape[0], min(self._config.minibatches, chosen.shape[0])
        edges = [n * i // parts for i in range(parts + 1)]
        for start, stop in pairwise(edges):
            seen = self._policy.evaluate({name: x[start:stop] for name, x in observation.items()})
            yield (*seen, flat.map(operator.itemgetter(slice(start, stop))))

    def _columns(self, batch: Batch, targets: _Targets) -> Iterator[tuple[Distribution, Tensor, _Targets]]:
        columns = batch.reward.shape[1]
        for index in self._order(columns).tensor_split(min(self._config.minibatches, columns)):
            outputs = self._policy.unroll(
                {name: x[:, index] for name, x in batch.observation.items()},
                batch.first[:, index],
                {name: x[index] for name, x in batch.state.items()},
            )
            yield outputs.distribution, outputs.values[:-1], targets.map(operator.itemgetter((slice(None), index)))

    def _step(
        self, distribution: Distribution, value: Tensor, part: _Targets, clip: float, lr: float
    ) -> tuple[Tensor, Tensor]:
        """Takes one gradient step; gives (policy loss, value loss, entropy, gradient norm) and log π/μ of its steps."""
        config, mask = self._config, part.mask
        advantage = losses.standardized(part.advantage, mask) if config.normalize_advantages else part.advantage
        log_ratio = distribution.log_prob(part.action) - part.log_prob
        policy_loss = losses.clipped_surrogate(log_ratio.exp(), advantage, clip, mask)
        if config.value_clip is None:
            value_loss = losses.value_loss(value, part.target, mask)
        else:
            value_loss = losses.clipped_value_loss(value, part.value, part.target, config.value_clip, mask)
        loss = policy_loss + config.value_weight * value_loss
        with torch.set_grad_enabled(config.entropy > 0):
            entropy = losses.masked_mean(distribution.entropy(), mask)
        if config.entropy:
            loss = loss - config.entropy * entropy
        norm = self._optimizer.step(loss, lr)
        moved = log_ratio.detach()
        row = torch.stack([policy_loss.detach(), value_loss.detach(), entropy.detach(), norm])
        return row, moved.flatten() if mask is None else moved[mask]

    def state_dict(self) -> dict[str, Any]:
        """Gives the optimiser, the generator's state and the return statistics."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict(), "generator": self._generator.get_state()}
        if self._scaler is not None:
            state["returns"] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["returns"])
