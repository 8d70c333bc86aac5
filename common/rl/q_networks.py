"""The Q-network: what inference calls to act and what learners train, for one discrete choice.

Must not know an optimiser, a target network, or where observations come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.rl.actor import Acted, Actor, Seen
from common.rl.batch import Batch
from common.rl.cores import State, core_of, state_specs, stepped
from common.rl.exploration import COLUMNS, EpsilonConfig, acting_epsilon, explored
from common.rl.heads import torch_dtype
from common.rl.last_step import LAST, LastStep, rows_of
from common.rl.networks import Inputs, NetworkConfig, Trunk, read_network, width_of
from common.rl.noisy_layers import Dense, factorised
from common.rl.ops.q_learning import of_action, rescale, unrescale
from common.rl.value_heads import ValueHead
from common.types import ArraySpec, EnvSpec, PolicySpec

_FOR_POLICIES = ("shared", "action_mask", "distribution", "sigma", "log_std_init", "popart")


@dataclass(frozen=True, slots=True)
class QSettings:
    """What an algorithm asks of its network; `hidden` and `sigma` are the streams'.

    `ships_values` adds extras for the priorities of transitions, `sequence_errors` for those of sequences: the
    discount, and the ε of h.
    """

    head: ValueHead
    epsilon: EpsilonConfig
    dueling: bool = False
    hidden: int = 0
    sigma: float = 0.0
    ships_values: bool = False
    sequence_errors: tuple[float, float] | None = None


class Stream(nn.Module):
    """From features to outputs, through a layer of `hidden` units if that is not 0; all layers noisy, or none."""

    def __init__(self, features: int, outputs: int, hidden: int, sigma: float) -> None:
        super().__init__()
        self.hidden = Dense(features, hidden, sigma) if hidden else None
        self.out = Dense(hidden or features, outputs, sigma)
        self.noise = self.out.noise + (self.hidden.noise if self.hidden is not None else 0)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        if self.hidden is None:
            return self.out(x, noise)  # type: ignore[no-any-return]
        own = (None, None) if noise is None else torch.split(noise, [self.hidden.noise, self.out.noise], -1)
        return self.out(torch.relu(self.hidden(x, own[0])), own[1])  # type: ignore[no-any-return]


class QNetwork(Actor):
    """Values of every action, in the numbers of its `head`; `build_q_network` makes one.

    Dueling adds a value to advantages less their mean (Wang et al. 2016). Noisy streams draw factorised noise for each
    environment and step from the counter-based uniforms, so that acting depends on neither batching nor versions.
    """

    def __init__(self, config: NetworkConfig, env: EnvSpec, settings: QSettings) -> None:
        super().__init__()
        self.env = env
        self.acting = {}
        self.head = settings.head
        self._settings = settings
        self._choices = env.action.n[0]
        self._action_dtype = torch_dtype(env.action.dtype)
        self.inputs = Inputs(env.observations, config)
        self.trunk = Trunk(self.inputs, config)
        told = config.last_action or config.last_reward
        self.last = LastStep(env.action, config.last_action, config.last_reward) if told else None
        width = width_of(self.trunk, self.inputs) + (self.last.width if self.last is not None else 0)
        self.core = core_of(width, config.lstm, config.gru)
        features = width if self.core is None else self.core.size
        numbers, streams = self.head.size, (settings.hidden, settings.sigma)
        self.advantage = Stream(features, self._choices * numbers, *streams)
        self.value = Stream(features, numbers, *streams) if settings.dueling else None
        self._split = [self.advantage.noise, 0 if self.value is None else self.value.noise]
        self.noise_features = sum(self._split)
        self.noise_size = COLUMNS + self.noise_features
        shipped: tuple[str, ...] = ("error_before",) if settings.sequence_errors else ()
        shipped = ("q_taken", "q_bootstrap") if settings.ships_values else shipped
        extras = tuple(ArraySpec(name, "<f4", ()) for name in shipped)
        carried = () if self.last is None else self.last.state
        valued = (ArraySpec("q_taken", "<f4", ()),) if settings.sequence_errors else ()
        self.spec = PolicySpec(extras, (*state_specs(self.core), *carried, *valued))

    def _features(self, observation: Mapping[str, Tensor], last: Tensor | None) -> Tensor:
        features: Tensor = self.trunk(self.inputs(observation))
        return features if last is None else torch.cat([features, last], -1)

    def values(self, features: Tensor, noise: Tensor | None) -> Tensor:
        """Gives the numbers [N, A, size] of every action, of features [N, F]; `noise` is [N or 1, noise_features]."""
        own = (None, None) if noise is None else torch.split(noise, self._split, -1)
        values: Tensor = self.advantage(features, own[0]).reshape(-1, self._choices, self.head.size)
        if self.value is None:
            return values
        base: Tensor = self.value(features, own[1]).unsqueeze(-2)
        return base + values - values.mean(-2, keepdim=True)

    def evaluate(self, observation: Mapping[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Gives the numbers [N, A, size] of independent observations [N, ...]; only without a recurrent core."""
        return self.values(self._features(observation, None), noise)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Gives all that the network looks at in a batch, row by row [T+1, B, ...]."""
        return rows_of(batch, self.last)

    def unroll(self, rows: Mapping[str, Tensor], first: Tensor, state: State) -> State:
        """Gives the core's state [T, B, size] after each of the `rows`, from the one before the first of them."""
        assert self.core is not None
        flat = {name: x.flatten(0, 1) for name, x in rows.items()}
        features = self._features(flat, flat.get(LAST)).reshape(*first.shape, -1)
        return self.core.unroll(features, first, state)

    def act(self, seen: Seen, greedy: bool = False) -> Acted:
        features = self._features(seen.observation, None if self.last is None else self.last.of_step(seen))
        features, state = stepped(self.core, features, seen.first, seen.state)
        noisy = self.noise_features > 0 and not greedy
        noise = factorised(torch.special.ndtri(seen.noise[:, COLUMNS:])) if noisy else None
        expected = self.head.expected(self.values(features, noise))
        bootstrap, best = expected.max(-1)
        action = best
        if not greedy:
            epsilon = acting_epsilon(self._settings.epsilon, seen.env, self.acting)
            action = explored(best, self._choices, epsilon, seen.noise[:, :COLUMNS])
        extras: dict[str, Tensor] = {}
        if self._settings.ships_values:
            extras = {"q_taken": of_action(expected, action), "q_bootstrap": bootstrap}
        elif self._settings.sequence_errors:
            extras = {"error_before": self._error_before(seen, bootstrap, *self._settings.sequence_errors)}
            state["q_taken"] = of_action(expected, action)
        action = action.to(self._action_dtype)
        if self.last is not None and self.last.code is not None:
            state["last_action"] = action
        return Acted(action, extras, state)

    @staticmethod
    def _error_before(seen: Seen, bootstrap: Tensor, discount: float, rescaling: float) -> Tensor:
        """Gives |h(r + discount · h⁻¹(max Q)) - Q| [B] of the step before, which ended nothing or was terminated."""
        after = unrescale(bootstrap, rescaling).masked_fill(seen.first, 0.0)
        return (rescale(seen.reward + discount * after, rescaling) - seen.state["q_taken"]).abs()


def build_q_network(network: Mapping[str, Any], env: EnvSpec, seed: int, settings: QSettings) -> QNetwork:
    """Builds a Q-network whose initial weights depend on `seed` alone.

    A bad `network`, or an action that is no single choice, is a ConfigError.
    """
    config = read_network(network)
    if env.action.kind != "discrete":
        raise ConfigError(
            f"algorithm.name: Q-learning takes one discrete action, {env.id!r} has {env.action.kind} actions",
            "choose sac or td3 for continuous actions, or a policy-gradient algorithm",
        )
    for key in _FOR_POLICIES:
        if key in network:
            raise ConfigError(f"network.{key}={network[key]!r} says nothing to a Q-network", "leave it out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QNetwork(config, env, settings)
