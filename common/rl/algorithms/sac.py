"""SAC (Haarnoja et al. 2018b) for Box and for discrete actions (Christodoulou 2019), and TQC (Kuznetsov et al. 2020).

With the temperature t, y = r + discount · (min Q̄(s', a') - t log π(a'|s')); the actor goes down t log π - min Q, and
log t goes up where the entropy is below H̄, `target_entropy`. Over discrete actions all of these are expectations, and
exact: a critic gives one value per action. n-step returns, their discount and priorities are the table's: a
prioritized one makes `importance` the weights' exponent.

TQC is `quantiles` above 0: each critic gives that many, y is each of the pooled target quantiles less the largest
`drop` per critic, and the actor goes by the mean of all.

Deviations: all gradients of an update are taken at the parameters before it; discrete actions aim at half the largest
entropy, where Christodoulou's 0.98 of it is near coin flips on two actions. Densities are of actions scaled to ±1.
TQC has two critics where the paper has five, and its loss is summed over a critic's quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from common.errors import ConfigError
from common.rl.action_noise import uniform
from common.rl.actor import Acted, Actor, Seen
from common.rl.algorithms.base import Batches, FlatOptimizer, OptimizerConfig, numbers_of
from common.rl.algorithms.critic_learner import DEFAULT_OPTIMIZER, CriticConfig, CriticLearner
from common.rl.bounded import TanhNormal
from common.rl.critics import Body, Critic, bounds_of, critics_of, feed_forward, least, unit_box
from common.rl.distributions import Categorical
from common.rl.heads import Head, torch_dtype
from common.rl.networks import Inputs, NetworkConfig
from common.rl.ops.distributional import quantile_huber
from common.rl.replayed import Transitions, importance
from common.rl.settings import read_settings
from common.types import EnvSpec, PolicySpec


class SACConfig(CriticConfig):
    """The `algorithm` section."""

    temperature: float = Field(1.0, gt=0, description="what a nat of entropy is worth, at the start if it is learned")
    learn_temperature: bool = Field(True, description="the temperature follows the entropy; false: it stays")
    target_entropy: float | None = Field(
        None, description="H̄ in nats, which is aimed at; null: -|A| of Box actions, half of log |A| of discrete ones"
    )
    quantiles: int = Field(0, ge=0, description="TQC: quantiles of each critic; 0: a critic gives a mean (TQC: 25)")
    drop: int = Field(2, ge=0, description="TQC: the largest target quantiles that are dropped, per critic")

    @property
    def unread(self) -> Mapping[str, str]:
        """The keys that this one does not look at, and for what setting."""
        unread = {} if self.quantiles else {"drop": "quantiles=0"}
        return unread if self.learn_temperature else {**unread, "target_entropy": "learn_temperature=false"}


class SACActor(Actor):
    """The policy: a normal squashed into the box, or a choice."""

    def __init__(self, config: NetworkConfig, env: EnvSpec, settings: SACConfig, seed: int) -> None:
        super().__init__()
        self.env, self.config = env, config
        self.acting = {}
        self.choices = env.action.n[0] if env.action.kind == "discrete" else 0
        self.bounds = None if self.choices else bounds_of(env, "SAC")
        action = env.action if self.choices else unit_box(env.action.size)
        self.head = Head(action, "tanh_normal", "state", config.log_std_init)
        self.noise_size = self.head.sizes.noise
        self.inputs = Inputs(env.observations, config)
        self.body = Body(self.inputs, config, 1, 0, self.head.sizes.outputs)
        self._dtype = torch_dtype(env.action.dtype)
        self.critic = Critic(self.critics(settings, seed)) if settings.actor_priorities else None
        self.spec = PolicySpec(() if self.critic is None else self.critic.spec)

    def critics(self, settings: SACConfig, seed: int) -> Body:
        """Gives critics as the learner has them: of an action, or of each choice."""
        size, outputs = (0, self.choices) if self.choices else (self.env.action.size, settings.quantiles or 1)
        return critics_of(self.inputs, self.config, settings.critics, size, outputs, seed)

    def distribution(self, inputs: list[Tensor]) -> TanhNormal | Categorical:
        """Gives π [N] of what `inputs` gave: over actions in ±1, or over the choices."""
        pi = self.head.distribution(self.body(self.body.features(inputs))[0])
        assert isinstance(pi, TanhNormal | Categorical)
        return pi

    def act(self, seen: Seen, greedy: bool = False) -> Acted:
        if self.acting.get("uniform", 1.0) and not greedy:
            action = (seen.noise[:, 0] * self.choices).long() if self.choices else uniform(seen.noise)
        else:
            distribution = self.distribution(self.inputs(seen.observation))
            action = distribution.mode() if greedy else distribution.sample(seen.noise)
        extras = {} if self.critic is None else self._estimates(self.critic, self.inputs(seen.observation), action)
        if self.bounds is not None:
            action = self.bounds.outward(action)
        return Acted(action.to(self._dtype), extras, {})

    def _estimates(self, critic: Critic, inputs: list[Tensor], action: Tensor) -> dict[str, Tensor]:
        pi = self.distribution(inputs)
        if isinstance(pi, Categorical):
            return critic.estimates_of_choices(inputs, action, pi.log_probs.exp())
        return critic.estimates(inputs, action, pi.mode())


class Temperature(nn.Module):
    """What a nat of entropy is worth, by its logarithm, [1]."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor([math.log(value)]))


def _read(algorithm: Mapping[str, Any], env: EnvSpec) -> SACConfig:
    config = read_settings(SACConfig, algorithm, "algorithm")
    if config.quantiles and env.action.kind == "discrete":
        raise ConfigError(f"algorithm.quantiles={config.quantiles} wants Box actions", "set it to 0, or choose dqn")
    if config.quantiles and config.drop >= config.quantiles:
        raise ConfigError(f"algorithm.drop={config.drop} leaves none of {config.quantiles} quantiles", "lower it")
    # Of the uniform policy, over choices or within ±1: short of it for ever, the temperature would grow without end.
    most = math.log(env.action.n[0]) if env.action.kind == "discrete" else env.action.size * math.log(2.0)
    if config.target_entropy is not None and config.target_entropy > most:
        text = f"algorithm.target_entropy={config.target_entropy} is more than any policy has, which is {most:.4g} nats"
        raise ConfigError(text, "lower it")
    return config


def truncated(quantiles: Tensor, drop: int) -> Tensor:
    """Gives the pooled quantiles [N, k] of critics [E, N, m] less the E · drop largest, in order."""
    members, n, m = quantiles.shape
    pooled = quantiles.transpose(0, 1).reshape(n, members * m)
    kept: Tensor = pooled.sort(-1).values[:, : members * (m - drop)]
    return kept


class SAC:
    """See the module."""

    batches: ClassVar[Batches] = "transitions"
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> SACActor:
        settings = _read(algorithm, env)
        chooses = env.action.kind == "discrete"
        config = feed_forward(network, "SAC over choices", "log_std_init") if chooses else feed_forward(network, "SAC")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SACActor(config, env, settings, seed)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: SACActor, seed: int) -> None:
        config = self._config = _read(algorithm, actor.env)
        settings = optimizer.over(DEFAULT_OPTIMIZER)
        self._actor = actor
        self._actor_optimizer = FlatOptimizer(settings, actor)
        device = self._actor_optimizer.flat.device
        self._critics = CriticLearner(config, settings, actor.critics(config, seed).to(device), seed)
        self._critics.lend(actor.critic)
        self._temperature = FlatOptimizer(settings, Temperature(config.temperature).to(device))
        default = 0.5 * math.log(actor.choices) if actor.choices else -float(actor.env.action.size)
        self._target_entropy = default if config.target_entropy is None else config.target_entropy

    def learn(self, batch: Transitions, progress: float) -> dict[str, float]:
        """Takes one step; `progress` 0..1 is how much of the job is done."""
        critics, lr = self._critics, self._critics.optimizer.rate(progress)
        batch = critics.goals.relabel(batch)
        temperature = self._temperature.flat.exp()
        now, after = self._actor.inputs(batch.observation), self._actor.inputs(batch.next_observation)
        noise = critics.uniforms(2, batch.steps, self._actor.noise_size)
        target = self._target(batch, after, noise[0], temperature)
        features, bounds = critics.critic.features(now), self._actor.bounds
        values = critics.critic(features, None if bounds is None else bounds.inward(batch.action))
        errors, surprise = self._errors(values, batch.action, target)
        critic_loss = (importance(batch.relative, self._config.importance, progress) * errors).mean()
        actor_loss, log_prob = self._actor_loss(now, features.detach(), values.detach(), noise[1], temperature)
        critic_gradient = critics.optimizer.gradient(critic_loss)
        actor_gradient = self._actor_optimizer.gradient(actor_loss)
        excess = -log_prob.reshape(1) - self._target_entropy
        metrics = numbers_of(
            {
                "critic_loss": critic_loss,
                "actor_loss": actor_loss,
                "q": values.mean(),
                "entropy": -log_prob,
                "temperature": temperature,
                "critic_grad_norm": critic_gradient[1],
                "actor_grad_norm": actor_gradient[1],
            }
        )
        critics.optimizer.descend(*critic_gradient, lr)
        self._actor_optimizer.descend(*actor_gradient, lr)
        if self._config.learn_temperature:
            self._temperature.descend(excess, excess.norm(), lr)
        critics.follow()
        self._actor.inputs.fold(batch.observation)
        self.priorities = surprise
        return {**metrics, "lr": lr}

    @torch.no_grad()
    def _target(self, batch: Transitions, after: list[Tensor], u: Tensor, temperature: Tensor) -> Tensor:
        """Gives y [n, k]: one target for each transition, or the quantiles of it that were kept."""
        target, pi = self._critics.target.network, self._actor.distribution(after)
        features = target.features(after)
        if isinstance(pi, Categorical):
            worst, log_prob = least(target(features)), pi.log_probs
            value = (log_prob.exp() * (worst - temperature * log_prob)).sum(-1, keepdim=True)
        else:
            action, log_prob = pi.sample_with_log_prob(u)
            given = target(features, action)
            kept = truncated(given, self._config.drop) if self._config.quantiles else least(given)
            value = kept - (temperature * log_prob).unsqueeze(-1)
        y: Tensor = batch.reward.unsqueeze(-1) + batch.discount.unsqueeze(-1) * value
        return y

    def _errors(self, values: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Gives each transition's loss [n], summed over the critics, and its new priority [n]."""
        if self._actor.choices:
            values = values.gather(-1, action.long().expand(values.shape[:2]).unsqueeze(-1))
        surprise = (target.mean(-1) - values.detach().mean(-1)).abs().mean(0)
        if not self._config.quantiles:
            return 0.5 * (values - target).square().sum((0, 2)), surprise
        losses = quantile_huber(values.flatten(0, 1), target.repeat(values.shape[0], 1), 1.0)
        return losses.view(values.shape[:2]).sum(0), surprise

    def _actor_loss(
        self, now: list[Tensor], features: Tensor, values: Tensor, u: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gives the actor's loss, and the mean log π of its actions; `values` are the critics' of every choice."""
        pi = self._actor.distribution(now)
        if isinstance(pi, Categorical):
            expected = pi.log_probs.exp() * (temperature * pi.log_probs - least(values))
            return expected.sum(-1).mean(), -pi.entropy().detach().mean()
        action, log_prob = pi.sample_with_log_prob(u)
        given = self._critics.critic(features, action, frozen=True)
        value = given.mean((0, 2)) if self._config.quantiles else least(given).squeeze(-1)
        return (temperature * log_prob - value).mean(), log_prob.detach().mean()

    def acting(self, steps: int, progress: float) -> dict[str, float]:
        """Gives `uniform`: until the first update all actions are alike."""
        return {"uniform": float(self._critics.optimizer.steps == 0)}

    def state_dict(self) -> dict[str, Any]:
        """Gives the critics with their target, the temperature, and all optimisers."""
        own = {"actor_optimizer": self._actor_optimizer, "temperature_optimizer": self._temperature}
        optimizers = {name: optimizer.state_dict() for name, optimizer in own.items()}
        return {**self._critics.state_dict(), **optimizers, "log_temperature": self._temperature.flat.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self._critics.load_state_dict(state)
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])
        self._temperature.load_state_dict(state["temperature_optimizer"])
        self._temperature.flat.copy_(state["log_temperature"])
