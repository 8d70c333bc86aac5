"""TD3 (Fujimoto et al. 2018), and DDPG (Lillicrap et al. 2016) as its simpler case.

y = r + discount · min Q̄(s', clip(μ̄(s') + clip(N(0, smoothing), ± smoothing_clip))), and the actor goes up Q of the
first critic; it and all targets move every `policy_delay`-th update. Actions and noise are in halves of the action's
range. DDPG is one critic, no smoothing, no delay, and noise that drifts. n-step returns, their discount and priorities
are the table's: a prioritized one makes `importance` the weights' exponent.

Deviations: all gradients of an update are taken at the parameters before it; DDPG has no weight decay and no batch
normalisation, and its action enters the critic at the first layer. Learning rates and τ are one set for both, as is
usual today, and not the papers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from common.rl.action_noise import (
    ActionNoiseConfig,
    DriftingNoiseConfig,
    memory_spec,
    noise_scalars,
    perturbed,
    uniform,
)
from common.rl.actor import Acted, Actor, Seen
from common.rl.algorithms.base import Batches, FlatOptimizer, OptimizerConfig, numbers_of
from common.rl.algorithms.critic_learner import DEFAULT_OPTIMIZER, CriticConfig, CriticLearner
from common.rl.critics import Body, Critic, bounds_of, critics_of, feed_forward, least
from common.rl.heads import torch_dtype
from common.rl.networks import Inputs, NetworkConfig
from common.rl.replayed import Transitions, importance
from common.rl.settings import read_settings
from common.rl.target import Target
from common.types import EnvSpec, PolicySpec


class TD3Config(CriticConfig):
    """The `algorithm` section."""

    policy_delay: int = Field(2, ge=1, description="updates of the critics to one of the actor and the targets")
    smoothing: float = Field(0.2, ge=0, description="std of the noise around the target's actions")
    smoothing_clip: float = Field(0.5, ge=0, description="how far that noise may go")
    noise: ActionNoiseConfig = Field(
        ActionNoiseConfig(), description="exploration: kind, scale, theta of ornstein_uhlenbeck, schedule"
    )

    @property
    def unread(self) -> Mapping[str, str]:
        """The keys that this one does not look at, and for what setting."""
        return {} if self.smoothing else {"smoothing_clip": "smoothing=0"}


class DDPGConfig(TD3Config):
    """The `algorithm` section: TD3's, with nothing to smooth and nothing to wait for."""

    critics: int = Field(1, ge=1, description="critics in the ensemble")
    policy_delay: int = Field(1, ge=1, description="updates of the critic to one of the actor and the targets")
    smoothing: float = Field(0.0, ge=0, description="std of the noise around the target's actions")
    noise: DriftingNoiseConfig = Field(
        DriftingNoiseConfig(), description="exploration: kind, scale, theta of ornstein_uhlenbeck, schedule"
    )


class DeterministicActor(Actor):
    """μ: one action per observation, and noise around it while it collects."""

    def __init__(self, config: NetworkConfig, env: EnvSpec, settings: TD3Config, algorithm: str, seed: int) -> None:
        super().__init__()
        self.env, self.config = env, config
        self.acting = {}
        self.bounds = bounds_of(env, algorithm)
        self.noise_size = env.action.size
        self.inputs = Inputs(env.observations, config)
        self.body = Body(self.inputs, config, 1, 0, env.action.size)
        self._noise = settings.noise
        self._dtype = torch_dtype(env.action.dtype)
        self.critic = Critic(self.critics(settings, seed)) if settings.actor_priorities else None
        extras = () if self.critic is None else self.critic.spec
        self.spec = PolicySpec(extras, memory_spec(settings.noise, env.action.size))

    def critics(self, settings: TD3Config, seed: int) -> Body:
        """Gives critics as the learner has them."""
        return critics_of(self.inputs, self.config, settings.critics, self.env.action.size, 1, seed)

    def act(self, seen: Seen, greedy: bool = False) -> Acted:
        inputs = self.inputs(seen.observation)
        best = action_of(self.body, inputs)
        y, state = best, seen.state
        if not greedy:
            at_random = self.acting.get("uniform", 1.0)
            y, state = perturbed(y, seen, self._noise, self.acting.get("noise", 0.0))
            y = uniform(seen.noise) if at_random else y
        extras = {} if self.critic is None else self.critic.estimates(inputs, y, best)
        return Acted(self.bounds.outward(y).to(self._dtype), extras, dict(state))


def action_of(body: Body, inputs: list[Tensor]) -> Tensor:
    """Gives μ [N, k] in ±1 of what `Inputs` gave."""
    y: Tensor = body(body.features(inputs))[0].tanh()
    return y


class _DeterministicPolicyGradient:
    """What both do with a batch."""

    def __init__(self, config: TD3Config, optimizer: OptimizerConfig, actor: DeterministicActor, seed: int) -> None:
        settings = optimizer.over(DEFAULT_OPTIMIZER)
        self._config = config
        self._actor = actor
        self._optimizer = FlatOptimizer(settings, actor)
        self._target = Target(actor.body)
        device = self._optimizer.flat.device
        self._critics = CriticLearner(config, settings, actor.critics(config, seed).to(device), seed)
        self._critics.lend(actor.critic)
        # Of the last update that moved the actor: its loss, and its gradient's norm.
        self._last = torch.zeros(2, device=device)

    def learn(self, batch: Transitions, progress: float) -> tuple[dict[str, float], Tensor]:
        critics, lr = self._critics, self._critics.optimizer.rate(progress)
        batch = critics.goals.relabel(batch)
        now, after = self._actor.inputs(batch.observation), self._actor.inputs(batch.next_observation)
        features = critics.critic.features(now)
        given = critics.critic(features, self._actor.bounds.inward(batch.action)).squeeze(-1)
        error = given - self._targets(batch, after)
        losses = 0.5 * error.square().sum(0)
        critic_loss = (importance(batch.relative, self._config.importance, progress) * losses).mean()
        critic_gradient = critics.optimizer.gradient(critic_loss)
        moves = (critics.optimizer.steps + 1) % self._config.policy_delay == 0
        last = self._last
        if moves:
            actor_loss = -critics.critic(
                features.detach(), action_of(self._actor.body, now), frozen=True, members=1
            ).mean()
            actor_gradient = self._optimizer.gradient(actor_loss)
            last = torch.stack([actor_loss.detach(), actor_gradient[1]])
        scalars = {"critic_loss": critic_loss, "q": given.mean(), "critic_grad_norm": critic_gradient[1]}
        metrics = numbers_of({**scalars, "actor_loss": last[0], "actor_grad_norm": last[1]})
        critics.optimizer.descend(*critic_gradient, lr)
        if moves:
            self._optimizer.descend(*actor_gradient, lr)
            self._target.follow(self._optimizer.flat, self._config.tau)
            critics.follow()
        self._last = last
        self._actor.inputs.fold(batch.observation)
        return {**metrics, "lr": lr}, error.detach().abs().mean(0)

    @torch.no_grad()
    def _targets(self, batch: Transitions, after: list[Tensor]) -> Tensor:
        """Gives y [n]."""
        config, target = self._config, self._critics.target.network
        action = action_of(self._target.network, after)
        if config.smoothing:
            normal = torch.special.ndtri(self._critics.uniforms(*action.shape))
            limit = config.smoothing_clip
            action = (action + (config.smoothing * normal).clamp_(-limit, limit)).clamp_(-1.0, 1.0)
        value = least(target(target.features(after), action).squeeze(-1))
        return batch.reward + batch.discount * value

    def acting(self, steps: int, progress: float) -> dict[str, float]:
        return noise_scalars(self._config.noise, progress, self._critics.optimizer.steps)

    def state_dict(self) -> dict[str, Any]:
        own = {"actor_optimizer": self._optimizer.state_dict(), "actor_target": self._target.flat.clone()}
        return {**self._critics.state_dict(), **own, "last": self._last.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._critics.load_state_dict(state)
        self._optimizer.load_state_dict(state["actor_optimizer"])
        self._target.flat.copy_(state["actor_target"])
        self._last = state["last"].to(self._last.device)


class TD3:
    """See the module."""

    batches: ClassVar[Batches] = "transitions"
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(
        algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int
    ) -> DeterministicActor:
        return _make_actor(read_settings(TD3Config, algorithm, "algorithm"), network, env, seed, "TD3")

    def __init__(
        self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: DeterministicActor, seed: int
    ) -> None:
        config = read_settings(TD3Config, algorithm, "algorithm")
        self._learner = _DeterministicPolicyGradient(config, optimizer, actor, seed)
        self.acting = self._learner.acting
        self.state_dict, self.load_state_dict = self._learner.state_dict, self._learner.load_state_dict

    def learn(self, batch: Transitions, progress: float) -> dict[str, float]:
        """Takes one step; `progress` 0..1 is how much of the job is done."""
        metrics, self.priorities = self._learner.learn(batch, progress)
        return metrics


class DDPG:
    """See the module."""

    batches: ClassVar[Batches] = "transitions"
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(
        algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int
    ) -> DeterministicActor:
        return _make_actor(read_settings(DDPGConfig, algorithm, "algorithm"), network, env, seed, "DDPG")

    def __init__(
        self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: DeterministicActor, seed: int
    ) -> None:
        config = read_settings(DDPGConfig, algorithm, "algorithm")
        self._learner = _DeterministicPolicyGradient(config, optimizer, actor, seed)
        self.acting = self._learner.acting
        self.state_dict, self.load_state_dict = self._learner.state_dict, self._learner.load_state_dict

    def learn(self, batch: Transitions, progress: float) -> dict[str, float]:
        """Takes one step; `progress` 0..1 is how much of the job is done."""
        metrics, self.priorities = self._learner.learn(batch, progress)
        return metrics


def _make_actor(
    config: TD3Config, network: Mapping[str, Any], env: EnvSpec, seed: int, algorithm: str
) -> DeterministicActor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeterministicActor(feed_forward(network, algorithm, "log_std_init"), env, config, algorithm, seed)
