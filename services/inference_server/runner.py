"""The forward pass: requests in, actions out, under one version of the weights. Knows no socket and no loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.errors import ProtocolError, RemoteError
from common.messages import Act, Actions, Weights
from common.rl.noise import uniforms
from common.rl.policy import Policy, build_policy, unpack_weights, weights_layout
from common.types import Arrays, EnvSpec, PolicySpec, prefixed, select


class Runner:
    """A policy and its weights. `act` and `load` must not run at the same time."""

    def __init__(self, network: dict[str, Any], seed: int, device: str) -> None:
        self._network = network
        self._seed = seed
        self._device = torch.device(device)
        self._policy: Policy | None = None
        self._rows: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self.env: EnvSpec | None = None
        self.spec: PolicySpec | None = None
        self.version = -1

    def load(self, weights: Weights) -> None:
        """Takes on new weights; the first ones say for which environment to build the network."""
        if self._policy is None or EnvSpec.from_wire(weights.env) != self.env:
            self._build(weights)
        assert self._policy is not None
        unpack_weights(self._policy, weights.arrays["weights"])
        self.version = weights.version

    def _build(self, weights: Weights) -> None:
        env = EnvSpec.from_wire(weights.env)
        policy = build_policy(self._network, env, self._seed)
        ours = json.dumps([self._network, weights_layout(policy)])
        if ours != weights.layout or policy.spec != PolicySpec.from_wire(weights.policy):
            raise RemoteError(
                "config",
                f"the learner's network is {weights.layout:.300}, this inference-server's is {ours:.300}",
                "start both with the same `network:` section",
            )
        self._policy, self.env, self.spec = policy.to(self._device), env, policy.spec
        rows = {f"observation.{a.name}": (np.dtype(a.dtype), a.shape) for a in env.observations}
        rows |= {f"state.{a.name}": (np.dtype(a.dtype), a.shape) for a in policy.spec.state}
        self._rows = {**rows, "first": (np.dtype(np.bool_), ())}

    def check(self, act: Act) -> None:
        """Raises ProtocolError, naming both sides, unless an Act holds what this policy looks at."""
        if act.count < 1 or act.first_env < 0 or act.first_env + act.count >= 1 << 43:
            raise ProtocolError(f"an Act for {act.count} environments from {act.first_env} on")
        for name, (dtype, shape) in self._rows.items():
            array = act.arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != (act.count, *shape):
                came = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise ProtocolError(
                    f"Act has {came} as {name}, the policy takes {dtype} {(act.count, *shape)}",
                    "run the same environment and network everywhere",
                )

    @torch.inference_mode()
    def act(self, acts: Sequence[Act]) -> list[Actions]:
        """Gives the actions for each request, from one pass over all of them."""
        assert self._policy is not None
        # One copy each, into a batch of our own: what came is read-only and may be unaligned.
        rows = {name: self._tensor([act.arrays[name] for act in acts]) for name in self._rows}
        noise = [uniforms(self._seed, (a.first_env, a.count), a.step, self._policy.noise_size) for a in acts]
        action, extras, state = self._policy.act(
            select("observation", rows), rows["first"], select("state", rows), self._tensor(noise)
        )
        tensors = {"action": action, **prefixed("extras", extras), **prefixed("state", state)}
        arrays: Arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        replies, start = [], 0
        for act in acts:
            part = {name: array[start : start + act.count] for name, array in arrays.items()}
            replies.append(Actions(self.version, part))
            start += act.count
        return replies

    def _tensor(self, parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(self._device)
