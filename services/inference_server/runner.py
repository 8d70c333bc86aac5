"""The forward pass: requests in, actions out, under one version of the weights. Knows no socket and no loop."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from common.config import MAX_ENVS
from common.errors import ProtocolError, RemoteError
from common.messages import Act, Actions, Weights
from common.rl.actor import Actor, Seen, unpack_weights, weights_layout
from common.rl.fastest import settle_on
from common.rl.noise import uniforms
from common.rl.numpy_actor import NumpyActor, numpy_actor
from common.rl.registry import make_actor
from common.rl.transfer import device_of, joined_to_device, to_host
from common.types import Arrays, EnvSpec, PolicySpec, prefixed, select

log = logging.getLogger("headrace.inference")

# Among the rows of a pass, beside what the requests brought.
_NOISE, _ENV = "<noise>", "<env>"


class Runner:
    """An algorithm's actor and its weights. `act` and `load` must not run at the same time.

    With `measured` the first pass settles which of the network's forms is fastest here; they differ by rounding.
    """

    def __init__(
        self, algorithm: dict[str, Any], network: dict[str, Any], seed: int, device: str, measured: bool = False
    ) -> None:
        self._algorithm = algorithm
        self._network = network
        self._seed = seed
        self._device = device_of("inference.device", device)
        self._measured = measured
        self._settled = not measured
        self._actor: Actor | None = None
        self._numpy: NumpyActor | None = None
        self._described: tuple[str, dict[str, Any], dict[str, Any]] | None = None
        self._rows: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self.env: EnvSpec | None = None
        self.spec: PolicySpec | None = None
        self.version = -1

    def load(self, weights: Weights) -> None:
        """Takes on new weights; the first ones of each learner say for which environment to build which network."""
        described = weights.layout, weights.env, weights.policy
        if described != self._described:
            self._build(weights)
            self._described = described
        assert self._actor is not None
        unpack_weights(self._actor, weights.arrays["weights"])
        self._actor.acting = weights.acting
        self.version = weights.version

    def _build(self, weights: Weights) -> None:
        env = EnvSpec.from_wire(weights.env)
        actor = make_actor(self._algorithm, self._network, env, self._seed)
        ours = json.dumps([self._network, weights_layout(actor)])
        if ours != weights.layout or actor.spec != PolicySpec.from_wire(weights.policy):
            raise RemoteError(
                "config",
                f"the learner's network is {weights.layout:.300}, this inference-server's is {ours:.300}",
                "start both with the same `network:` and `algorithm:` sections",
            )
        self._actor, self.env, self.spec = actor.to(self._device), env, actor.spec
        self._numpy = numpy_actor(self._actor)
        self._settled = not self._measured
        log.info("acts in %s", "torch" if self._numpy is None else "numpy: the network is one MLP")
        rows = {f"observation.{a.name}": (np.dtype(a.dtype), a.shape) for a in env.observations}
        rows |= {f"state.{a.name}": (np.dtype(a.dtype), a.shape) for a in actor.spec.state}
        self._rows = {**rows, "first": (np.dtype(np.bool_), ()), "reward": (np.dtype(np.float32), ())}

    def check(self, act: Act) -> None:
        """Raises ProtocolError, naming both sides, unless an Act holds what this policy looks at."""
        if act.count < 1 or act.first_env < 0 or act.first_env + act.count > MAX_ENVS:
            raise ProtocolError(f"an Act for {act.count} environments from {act.first_env} on", "lower its --index")
        for name, (dtype, shape) in self._rows.items():
            array = act.arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != (act.count, *shape):
                came = "nothing" if array is None else f"{array.dtype} {array.shape}"
                text = f"Act has {came} as {name}, the policy takes {dtype} {(act.count, *shape)}"
                raise ProtocolError(text, "run the same environment and network everywhere")

    @torch.inference_mode()
    def act(self, acts: Sequence[Act]) -> list[Actions]:
        """Gives the actions for each request, from one pass over all of them."""
        assert self._actor is not None
        noise = [uniforms(self._seed, (a.first_env, a.count), a.step, self._actor.noise_size) for a in acts]
        rows = {name: [act.arrays[name] for act in acts] for name in self._rows}
        in_torch = partial(self._act, rows, noise, acts)
        in_numpy = partial(self._numpy.act_for, rows, noise) if self._numpy else None
        if not self._settled:
            self._settled = True
            if not settle_on(self._actor, in_torch, in_numpy, sum(a.count for a in acts)):
                self._numpy = in_numpy = None
        arrays = (in_numpy or in_torch)()
        replies, start = [], 0
        for act in acts:
            part = {name: array[start : start + act.count] for name, array in arrays.items()}
            replies.append(Actions(self.version, part))
            start += act.count
        return replies

    def _act(self, rows: dict[str, list[np.ndarray]], noise: list[np.ndarray], acts: Sequence[Act]) -> Arrays:
        assert self._actor is not None
        env = [np.arange(a.first_env, a.first_env + a.count) for a in acts]
        batch = joined_to_device({**rows, _NOISE: noise, _ENV: env}, self._device)
        observation, state = select("observation", batch), select("state", batch)
        seen = Seen(observation, batch["first"], batch["reward"], state, batch[_NOISE], batch[_ENV])
        acted = self._actor.act(seen)
        return to_host({"action": acted.action, **prefixed("extras", acted.extras), **prefixed("state", acted.state)})
