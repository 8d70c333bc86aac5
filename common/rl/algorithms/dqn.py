"""DQN (Mnih et al. 2015) and what was laid over it, each a setting of its own.

`double` (van Hasselt et al. 2016), `dueling` (Wang et al. 2016), `noisy` streams (Fortunato et al. 2018), and the
`head`: c51 (Bellemare et al. 2017) or qr (Dabney et al. 2018). n-step returns, their discount, clipped rewards and
priorities (Schaul et al. 2016) are the table's: a prioritized one makes `importance` the weights' exponent, which
rises to 1 over the job. Rainbow (Hessel et al. 2018) is all of them at once, an overlay: configs/cartpole_rainbow.yaml.
Ape-X (Horgan et al. 2018) is `epsilon.actors`, `actor_priorities` and many env-servers: configs/cartpole_apex.yaml.

Deviations: Adam in place of RMSProp; dueling streams part after the encoder, with a layer of their own if `hidden` is
set; actors' first priorities are errors of expected returns whatever the head, while a distributional head's own are
its losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.errors import ConfigError
from common.rl.algorithms.base import Batches, OptimizerConfig
from common.rl.algorithms.q_learner import QConfig, QLearner
from common.rl.noise import uniforms
from common.rl.noisy_layers import factorised
from common.rl.ops.q_learning import of_action
from common.rl.q_networks import QNetwork, QSettings, build_q_network
from common.rl.replayed import Transitions, importance
from common.rl.settings import read_settings
from common.rl.value_heads import Histogram, Mean, Quantiles, ValueHead
from common.types import EnvSpec

DEFAULT_OPTIMIZER = OptimizerConfig(name="adam", lr=1e-4, eps=1e-8, max_grad_norm=10.0)
_RECURRENT = ("lstm", "gru", "last_action", "last_reward")
# No environment has this number, so that an update's noise is nobody's else.
_LEARNER = 1 << 43


class DQNConfig(QConfig):
    """The `algorithm` section."""

    double: bool = Field(False, description="the online network chooses the action that the target network values")
    dueling: bool = Field(False, description="a value, and advantages less their mean")
    noisy: float = Field(0.0, ge=0, description="σ₀ of noisy layers before the outputs; 0: none (Rainbow: 0.5)")
    head: Literal["q", "c51", "qr"] = Field("q", description="an action's mean return, its histogram, its quantiles")
    atoms: int = Field(51, ge=2, description="c51: bars of the histogram")
    v_min: float = Field(-10.0, description="c51: the lowest return")
    v_max: float = Field(10.0, description="c51: the highest return")
    quantiles: int = Field(200, ge=1, description="qr: how many")
    importance: float = Field(
        0.4, ge=0, le=1, description="β at the start, with a prioritized table; 1 at the end of the job's budget"
    )

    @property
    def unread(self) -> Mapping[str, str]:
        """The keys that the head does not look at, and for what setting."""
        read = {"q": ("huber",), "c51": ("atoms", "v_min", "v_max"), "qr": ("huber", "quantiles")}
        every = {name for names in read.values() for name in names}
        return dict.fromkeys(every.difference(read[self.head]), f"head={self.head}")


def _head(config: DQNConfig) -> ValueHead:
    if config.head == "c51":
        return Histogram(config.atoms, config.v_min, config.v_max)
    return Quantiles(config.quantiles, config.huber) if config.head == "qr" else Mean(config.huber)


def _read(algorithm: Mapping[str, Any]) -> DQNConfig:
    config = read_settings(DQNConfig, algorithm, "algorithm")
    if config.v_min >= config.v_max:
        raise ConfigError(
            f"algorithm.v_min={config.v_min} is not below algorithm.v_max={config.v_max}", "set the returns to expect"
        )
    return config


class DQN:
    """See the module."""

    batches: ClassVar[Batches] = "transitions"
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> QNetwork:
        config = _read(algorithm)
        for key in _RECURRENT:
            if network.get(key):
                raise ConfigError(f"network.{key}={network[key]!r} wants sequences", "set algorithm.name to r2d2")
        settings = QSettings(
            _head(config), config.epsilon, config.dueling, config.hidden, config.noisy, config.actor_priorities
        )
        return build_q_network(network, env, seed, settings)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: QNetwork, seed: int) -> None:
        self._config = _read(algorithm)
        self._learner = QLearner(self._config, optimizer.over(DEFAULT_OPTIMIZER), actor)
        self._seed = seed
        self.acting = self._learner.acting
        self.state_dict, self.load_state_dict = self._learner.state_dict, self._learner.load_state_dict

    def _noise(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gives factorised noise for the three passes of an update, a function of the seed and the update alone."""
        size = self._learner.network.noise_features
        if not size:
            return None, None, None
        drawn = torch.from_numpy(uniforms(self._seed, (_LEARNER, 1), self._learner.optimizer.steps, 3 * size))
        normal = torch.special.ndtri(drawn).to(self._learner.optimizer.flat.device)
        learned, chosen, valued = torch.split(factorised(normal), size, -1)
        return learned, chosen, valued

    @torch.no_grad()
    def _after(self, batch: Transitions, chosen: Tensor | None, valued: Tensor | None) -> Tensor:
        """Gives the numbers [n, size] of the best action in each next state."""
        learner, observation = self._learner, batch.next_observation
        after = learner.target.network.evaluate(observation, valued)
        judged = learner.network.evaluate(observation, chosen) if self._config.double else after
        return of_action(after, learner.network.head.expected(judged).argmax(-1))

    def learn(self, batch: Transitions, progress: float) -> dict[str, float]:
        """Takes one step; `progress` 0..1 is how much of the job is done."""
        network = self._learner.network
        learned, chosen, valued = self._noise()
        after = self._after(batch, chosen, valued)
        numbers = of_action(network.evaluate(batch.observation, learned), batch.action)
        errors, priorities = network.head.errors(numbers, after, batch.reward, batch.discount)
        weight = importance(batch.relative, self._config.importance, progress)
        scalars = {"q": network.head.expected(numbers.detach()).mean(), "priority": priorities.mean()}
        metrics = self._learner.update((weight * errors).mean(), scalars, progress)
        network.inputs.fold(batch.observation)
        self.priorities = priorities
        return metrics
