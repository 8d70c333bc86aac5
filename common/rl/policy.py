"""The actor-critic policy: what inference calls to act, what learners unroll, and its weights as one buffer.

Owns the layout of weights on the wire. Must not know a loss, an optimiser, or where observations come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ProtocolError
from common.rl.distributions import Distribution, make_distribution, noise_size, parameter_size
from common.rl.networks import LSTM, Inputs, NetworkConfig, Trunk, orthogonal, read_network
from common.types import ActionSpec, ArraySpec, EnvSpec, PolicySpec


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a policy says of an unroll: π over the first T rows, V of all T + 1, and (h, c) after each, if recurrent."""

    distribution: Distribution
    values: Tensor
    hidden: tuple[Tensor, Tensor] | None


def _flat(observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.flatten(0, 1) for name, x in observation.items()}


class Policy(nn.Module):
    """An actor and a critic over one environment's spec; `build_policy` makes one."""

    def __init__(self, config: NetworkConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.action: ActionSpec = spec.action
        self.noise_size = noise_size(spec.action)
        self.recurrent = config.lstm > 0
        self._shared = config.shared or self.recurrent
        self._action_dtype = torch.from_numpy(np.zeros(0, np.dtype(spec.action.dtype))).dtype
        self.inputs = Inputs(spec.observations, config)
        self.actor = Trunk(self.inputs, config)
        self.critic = None if self._shared else Trunk(self.inputs, config)
        example = {s.name: torch.from_numpy(np.zeros((1, *s.shape), np.dtype(s.dtype))) for s in spec.observations}
        with torch.no_grad():
            width = self.actor(self.inputs(example)).shape[1]
        self.core = LSTM(width, config.lstm) if self.recurrent else None
        features = config.lstm or width
        self.pi = orthogonal(nn.Linear(features, parameter_size(spec.action)), 0.01)
        self.v = orthogonal(nn.Linear(features, 1), 1.0)
        box = spec.action.kind == "box"
        self.log_std = nn.Parameter(torch.full((spec.action.size,), config.log_std_init)) if box else None
        state = tuple(ArraySpec(name, "<f4", (config.lstm,)) for name in ("h", "c")) if self.recurrent else ()
        self.spec = PolicySpec(extras=(ArraySpec("log_prob", "<f4", ()),), state=state)

    def _distribution(self, features: Tensor) -> Distribution:
        return make_distribution(self.action, self.pi(features), self.log_std)

    def act(
        self,
        observation: Mapping[str, Tensor],
        first: Tensor,
        state: Mapping[str, Tensor],
        u: Tensor,
        greedy: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Gives actions [B, ...], extras and the next state, from observations [B, ...] and u [B, noise_size].

        `first` [B] bool is where an episode begins and the state is dropped; call it under inference_mode.
        """
        features = self.actor(self.inputs(observation))
        following: dict[str, Tensor] = {}
        if self.core is not None:
            features, c = self.core.step(features, first, state["h"], state["c"])
            following = {"h": features, "c": c}
        distribution = self._distribution(features)
        action = distribution.mode() if greedy else distribution.sample(u)
        return action.to(self._action_dtype), {"log_prob": distribution.log_prob(action)}, following

    def evaluate(self, observation: Mapping[str, Tensor]) -> tuple[Distribution, Tensor]:
        """Gives π and V [N] of independent observations [N, ...]; only for a policy without an LSTM."""
        inputs = self.inputs(observation)
        features = self.actor(inputs)
        seen = features if self.critic is None else self.critic(inputs)
        return self._distribution(features), self.v(seen).squeeze(-1)

    def unroll(self, observation: Mapping[str, Tensor], first: Tensor, state: Mapping[str, Tensor]) -> Outputs:
        """Runs over time-major observations [T+1, B, ...] from the state [B, ...] before row 0; `first` is [T+1, B]."""
        rows, columns = first.shape
        inputs = self.inputs(_flat(observation))
        features = self.actor(inputs).unflatten(0, (rows, columns))
        hidden = None
        if self.core is not None:
            hidden = self.core.unroll(features, first, state["h"], state["c"])
            features = hidden[0]
        seen = features if self.critic is None else self.critic(inputs).unflatten(0, (rows, columns))
        return Outputs(self._distribution(features[:-1]), self.v(seen).squeeze(-1), hidden)

    def values_of_final(self, outputs: Outputs, final: Mapping[str, Tensor], final_index: Tensor) -> Tensor:
        """Gives V [K] of true last observations [K, ...], each seen after step t of column b (index t * B + b)."""
        inputs = self.inputs(final)
        if self.critic is not None:
            return self.v(self.critic(inputs)).squeeze(-1)  # type: ignore[no-any-return]
        features = self.actor(inputs)
        if self.core is not None and outputs.hidden is not None:
            h, c = (x.flatten(0, 1)[final_index] for x in outputs.hidden)
            features, _ = self.core.step(features, None, h, c)
        return self.v(features).squeeze(-1)  # type: ignore[no-any-return]

    def fold(self, observation: Mapping[str, Tensor]) -> None:
        """Merges a trained batch's observations [N, ...] into the normaliser; call it after the update, never before.

        A batch must be trained under the statistics it was acted with.
        """
        self.inputs.fold(observation)


def build_policy(network: Mapping[str, Any], spec: EnvSpec, seed: int) -> Policy:
    """Builds a policy whose initial weights depend on `seed` alone; a bad `network` is a ConfigError."""
    config = read_network(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(config, spec)


def weights_layout(policy: Policy) -> list[list[Any]]:
    """Gives [name, dtype, shape] of each tensor in the packed buffer, in order, to compare with the other side's."""
    state = policy.state_dict()
    return [[name, str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in state.items()]


def _bytes(x: Tensor) -> Tensor:
    return x.detach().reshape(-1).view(torch.uint8)


def pack_weights(policy: Policy) -> NDArray[np.uint8]:
    """Gives all weights and buffers as one new contiguous uint8 array, in the order of `weights_layout`."""
    packed: NDArray[np.uint8] = torch.cat([_bytes(x) for x in policy.state_dict().values()]).cpu().numpy()
    return packed


@torch.no_grad()
def unpack_weights(policy: Policy, buffer: NDArray[np.uint8]) -> None:
    """Writes a packed buffer, which may be read-only, into the policy in place; a wrong size is a ProtocolError."""
    targets = [_bytes(x) for x in policy.state_dict().values()]
    size = sum(x.numel() for x in targets)
    if buffer.nbytes != size:
        raise ProtocolError(
            f"weights of {buffer.nbytes} bytes came for a policy of {size} bytes",
            "the learner and the inference-server must build the same network for the same environment",
        )
    source = torch.from_numpy(np.array(buffer, np.uint8).reshape(-1)).to(targets[0].device)
    for target, part in zip(targets, torch.split(source, [x.numel() for x in targets]), strict=True):
        target.copy_(part)
    if policy.inputs.normalizer is not None:
        policy.inputs.normalizer.refresh()
