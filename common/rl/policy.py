"""The actor-critic policy: what inference calls to act and what learners unroll.

Must not know a loss, an optimiser, or where observations come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigError, nearest
from common.rl.actor import Acted, Actor, Seen
from common.rl.batch import Batch, padded
from common.rl.cores import Core, State, core_of, state_specs, stepped
from common.rl.distributions import Distribution
from common.rl.encoders import MLP, orthogonal
from common.rl.heads import Head, torch_dtype
from common.rl.last_step import LAST, LastStep, rows_of
from common.rl.networks import Inputs, NetworkConfig, Trunk, read_network, width_of
from common.rl.ops.normalize import PopArt
from common.types import ArraySpec, EnvSpec, PolicySpec


@dataclass(frozen=True, slots=True)
class Valued:
    """What a policy's values of an unroll are: V of all T + 1 rows, and the state after each of V's core."""

    values: Tensor
    hidden: State | None


@dataclass(frozen=True, slots=True)
class Outputs(Valued):
    """What a policy says of an unroll: its values, and π over the first T rows."""

    distribution: Distribution


def _flat(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.flatten(0, 1) for name, x in rows.items()}


def _through(core: Core | None, features: Tensor, batch: Batch) -> tuple[Tensor, State | None]:
    """Gives features [T·B, F] as [T, B, F] after a core's pass over an unroll, and its state after each row."""
    features = features.reshape(*batch.first.shape, -1)
    if core is None:
        return features, None
    hidden = core.unroll(features, batch.first, tuple(batch.state[name] for name in core.names))
    return hidden[0], hidden


class Policy(Actor):
    """An actor and a critic over one environment's spec; `build_policy` makes one.

    With `parameters` the behaviour's whole distribution travels with the unroll, and `behaviour` gives it back; with
    `values` its values do, for `bootstrapped`.
    """

    def __init__(self, config: NetworkConfig, env: EnvSpec, parameters: bool, values: bool) -> None:
        super().__init__()
        self.env = env
        self.action = env.action
        self.acting = {}
        self._ships_parameters, self._ships_values = parameters, values
        self.head = Head(env.action, config.distribution, config.sigma, config.log_std_init)
        self.noise_size = self.head.sizes.noise
        self._action_dtype = torch_dtype(env.action.dtype)
        self._mask = config.action_mask
        self.encoded = _encoded(env, config, self.head)
        self._build_trunks(config, self.encoded)
        told = config.last_action or config.last_reward
        self.last = LastStep(env.action, config.last_action, config.last_reward) if told else None
        width = width_of(self.actor, self.inputs) + (self.last.width if self.last is not None else 0)
        self.core = core_of(width, config.lstm, config.gru)
        self.critic_core = None if self.critic is None else core_of(width, config.lstm, config.gru, "critic_")
        features = width if self.core is None else self.core.size
        sizes = self.head.sizes
        self.pi = orthogonal(nn.Linear(features, sizes.outputs), 0.01)
        self.v = orthogonal(nn.Linear(features, 1), 1.0)
        self.log_std = nn.Parameter(torch.full((sizes.free,), config.log_std_init)) if sizes.free else None
        self.popart = PopArt() if config.popart else None
        self.spec = self._describe()

    def _build_trunks(self, config: NetworkConfig, observations: tuple[ArraySpec, ...]) -> None:
        self.inputs = Inputs(observations, config)
        self.actor = Trunk(self.inputs, config)
        recurrent = bool(config.lstm or config.gru)
        shared = recurrent if config.shared is None else config.shared
        self.critic = None if shared else Trunk(self.inputs, config)

    def _describe(self) -> PolicySpec:
        extras = [ArraySpec("log_prob", "<f4", ())]
        if self._ships_parameters:
            extras.append(ArraySpec("parameters", "<f4", (self.head.sizes.parameters,)))
        if self._ships_values:
            extras.append(ArraySpec("value", "<f4", ()))
        carried = () if self.last is None else self.last.state
        return PolicySpec(tuple(extras), (*state_specs(self.core), *state_specs(self.critic_core), *carried))

    @property
    def recurrent(self) -> bool:
        """Whether a step depends on those before it through a core."""
        return self.core is not None

    @property
    def plain(self) -> bool:
        """Whether acting is one MLP and then an unmasked choice or a normal of free sigma, with no other extra."""
        encoders = self.actor.encoders
        free_normal = self.action.kind == "box" and self.head.kind == "normal" and self.log_std is not None
        simple = free_normal or self.action.kind == "discrete"
        bare = not (self._mask or self._ships_parameters or self._ships_values)
        alone = self.core is None and self.last is None and bare
        return simple and alone and len(encoders) == 1 and isinstance(encoders[0], MLP)

    def _distribution(self, features: Tensor, rows: Mapping[str, Tensor]) -> Distribution:
        mask = None
        if self._mask:
            mask = rows[self._mask].reshape(*features.shape[:-1], -1) != 0
        return self.head.distribution(self.pi(features), self.log_std, mask)

    def _features(self, trunk: Trunk, inputs: list[Tensor], last: Tensor | None) -> Tensor:
        features: Tensor = trunk(inputs)
        return features if last is None else torch.cat([features, last], -1)

    def _values(self, features: Tensor) -> Tensor:
        value: Tensor = self.v(features).squeeze(-1)
        return value if self.popart is None else self.popart.raw(value)

    def act(self, seen: Seen, greedy: bool = False) -> Acted:
        last = None if self.last is None else self.last.of_step(seen)
        inputs = self.inputs(seen.observation)
        features, state = stepped(self.core, self._features(self.actor, inputs, last), seen.first, seen.state)
        valued = features
        if self.critic is not None and (self._ships_values or self.critic_core is not None):
            valued, hidden = stepped(
                self.critic_core, self._features(self.critic, inputs, last), seen.first, seen.state
            )
            state |= hidden
        distribution = self._distribution(features, seen.observation)
        action = (distribution.mode() if greedy else distribution.sample(seen.noise)).to(self._action_dtype)
        if self.last is not None and self.last.code is not None:
            state["last_action"] = action
        extras = {"log_prob": distribution.log_prob(action)}
        if self._ships_parameters:
            extras["parameters"] = distribution.parameters()
        if self._ships_values:
            extras["value"] = self._values(valued)
        return Acted(action, extras, state)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Gives all that the network looks at, row by row [T+1, B, ...]: `evaluate` takes any choice of the rows."""
        return rows_of(batch, self.last)

    def evaluate(self, rows: Mapping[str, Tensor]) -> tuple[Distribution, Tensor]:
        """Gives π and V [N] of independent `rows` [N, ...]; only for a policy without a recurrent core."""
        inputs, last = self.inputs(rows), rows.get(LAST)
        features = self._features(self.actor, inputs, last)
        seen = features if self.critic is None else self._features(self.critic, inputs, last)
        return self._distribution(features, rows), self._values(seen)

    def unroll(self, batch: Batch) -> Outputs:
        """Runs over the T + 1 rows of a batch from the state before row 0, which is dropped where an episode begins."""
        rows = _flat(self.rows(batch))
        inputs, last = self.inputs(rows), rows.get(LAST)
        features, hidden = _through(self.core, self._features(self.actor, inputs, last), batch)
        seen = features
        if self.critic is not None:
            seen, hidden = _through(self.critic_core, self._features(self.critic, inputs, last), batch)
        acted = {name: x[:-1] for name, x in batch.observation.items()}
        return Outputs(self._values(seen), hidden, self._distribution(features[:-1], acted))

    def valued(self, batch: Batch) -> Valued:
        """Gives the values that `unroll` gives, without what only π needs."""
        rows = _flat(self.rows(batch))
        trunk, core = self._beneath_values
        seen, hidden = _through(core, self._features(trunk, self.inputs(rows), rows.get(LAST)), batch)
        return Valued(self._values(seen), hidden)

    def bootstrapped(self, batch: Batch) -> Valued:
        """Gives the behaviour's values of the first T rows, of a policy built with `values`, and its own of the last.

        Only for a policy without a recurrent core: no state comes with the last row.
        """
        ends = {name: x[-1] for name, x in self.rows(batch).items()}
        trunk, _ = self._beneath_values
        end = self._values(self._features(trunk, self.inputs(ends), ends.get(LAST)))
        return Valued(torch.cat([batch.extras["value"], end[None]]), None)

    @property
    def _beneath_values(self) -> tuple[Trunk, Core | None]:
        return (self.actor, self.core) if self.critic is None else (self.critic, self.critic_core)

    def values_of_final(self, outputs: Valued, batch: Batch) -> Tensor | None:
        """Gives V [K] of a batch's true last observations, each seen after its step; None where it has none."""
        if batch.final_index is None:
            return None
        inputs = [padded(x) for x in self.inputs(batch.final)]
        last = None if self.last is None else padded(self.last.of_final(batch))
        trunk, core = self._beneath_values
        features, k = self._features(trunk, inputs, last), len(batch.final_index)
        if core is not None and outputs.hidden is not None:
            before = tuple(x.flatten(0, 1)[batch.final_index] for x in outputs.hidden)
            features = core.step(features[:k], None, before)[0]
        return self._values(features)[:k]

    def behaviour(self, extras: Mapping[str, Tensor]) -> Distribution:
        """Gives the distribution μ [...] that actions were drawn from, of a policy built with `parameters`."""
        return self.head.restore(extras["parameters"])

    def normalized(self, value: Tensor) -> Tensor:
        """Gives values or targets in the units that the value head is trained in: their own, without PopArt."""
        return value if self.popart is None else self.popart.normalized(value)

    def fold(self, batch: Batch) -> None:
        """Merges the observations of a trained batch's valid steps into the normaliser; call it after the update.

        Never before: a batch must be trained under the statistics it was acted with. A replayed column has been merged.
        """
        self.inputs.fold(batch.acted_on(), batch.online_steps())

    def fold_targets(self, target: Tensor, mask: Tensor | None) -> None:
        """Merges a trained batch's value targets [T, B] into PopArt's statistics, if it is on; values stay as they are.

        Call it after the update; `mask` is what counts, None for all.
        """
        if self.popart is not None:
            self.popart.fold(target, mask, self.v)


def _encoded(env: EnvSpec, config: NetworkConfig, head: Head) -> tuple[ArraySpec, ...]:
    """Gives the observations that encoders take: all but the action mask, which is checked."""
    if not config.action_mask:
        return env.observations
    masks = [spec for spec in env.observations if spec.name == config.action_mask]
    others = tuple(spec for spec in env.observations if spec.name != config.action_mask)
    if not masks or not others:
        what = "is the only observation" if masks else "is no observation"
        remedy = nearest(config.action_mask, [spec.name for spec in others])
        raise ConfigError(f"network.action_mask={config.action_mask!r} {what} of {env.id!r}", remedy)
    if math.prod(masks[0].shape) != head.sizes.choices:
        raise ConfigError(
            f"network.action_mask={config.action_mask!r} has shape {masks[0].shape}, the actions of {env.id!r} have "
            f"{head.sizes.choices} choices",
            "give one entry per choice of each component, in order",
        )
    return others


def _check_read(network: Mapping[str, Any], config: NetworkConfig, env: EnvSpec) -> None:
    """Raises ConfigError for a key of Box actions that is set and that the head of these actions does not look at."""
    box = any(part.kind == "box" for part in (env.action, *env.action.parts))
    unread = ("sigma", "log_std_init") if box else ("distribution", "sigma", "log_std_init")
    whose = "network.distribution='beta'" if box else f"the {env.action.kind} actions of {env.id!r}"
    for key in unread if not box or config.distribution == "beta" else ():
        if key in network:
            raise ConfigError(f"network.{key}={network[key]!r} says nothing to {whose}", "leave it out")


def build_policy(
    network: Mapping[str, Any], env: EnvSpec, seed: int, parameters: bool = False, values: bool = False
) -> Policy:
    """Builds a policy whose initial weights depend on `seed` alone; a bad `network` is a ConfigError.

    With `parameters` it ships `extras.parameters`, all that it takes to build its distributions again; with `values`
    `extras.value`, V of what it acted on.
    """
    config = read_network(network)
    _check_read(network, config, env)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(config, env, parameters, values)
