"""Acting with a small MLP in numpy: the policy's own weights and rule, several times faster than eager torch.

A group's observations are narrow, so an eager pass spends its time in torch's dispatch and in its `tanh`, which costs
ten times numpy's. Owns nothing but scratch memory: the weights are views of the policy's, and follow it in place. Knows
which policies it can stand in for; all others act by themselves. Of wide layers torch may be the faster after all:
fastest.py measures that.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.rl.actor import Actor
from common.rl.encoders import MLP
from common.rl.policy import Policy
from common.types import Arrays, select

Floats = NDArray[np.float32]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def numpy_actor(actor: Actor) -> NumpyActor | None:
    """Gives the numpy form of a plain policy on the CPU, one MLP and one head, or None for any other actor."""
    if not isinstance(actor, Policy) or not actor.plain or actor.pi.weight.device.type != "cpu":
        return None
    return NumpyActor(actor)


def _array(x: torch.Tensor) -> Floats:
    view: Floats = x.detach().numpy()
    return view


class NumpyActor:
    """Stands in for `policy.act` when it samples; the policy's weights must be written only in place."""

    def __init__(self, policy: Policy) -> None:
        encoder = cast(MLP, policy.actor.encoders[0])
        layers = [cast(nn.Linear, layer) for layer in encoder.layers]
        self._layers = [(_array(layer.weight), _array(layer.bias)[:, None]) for layer in layers]
        self._activation = np.tanh if encoder.activation == "tanh" else _relu
        self._normalizer = policy.inputs.normalizer
        self._names = [spec.name for spec in policy.inputs.flat]
        self._pi = (_array(policy.pi.weight), _array(policy.pi.bias)[:, None])
        self._log_std = None if policy.log_std is None else _array(policy.log_std)
        self._action = policy.action
        self._rule = _RULES[policy.action.kind]
        self._scratch: list[Floats] = []

    def act_for(self, requests: dict[str, list[np.ndarray]], noise: list[np.ndarray]) -> Arrays:
        """Acts for several requests in one pass, each part of which is a list of their arrays."""
        seen = select("observation", requests).items()
        joined = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in seen}
        return self.act(joined, np.concatenate(noise))

    def act(self, observation: Arrays, u: Floats) -> Arrays:
        """Gives action [B, ...] and extras.log_prob [B] for named observations [B, ...] and noise u [B, noise_size]."""
        rows = len(u)
        parts = [_flat(observation[name], rows) for name in self._names]
        h = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if self._normalizer is not None:
            h = (h - _array(self._normalizer.mean)) * _array(self._normalizer.scale)
            np.clip(h, -10.0, 10.0, out=h)
        if not self._scratch or self._scratch[0].shape[1] != rows:
            self._scratch = [np.empty((len(weight), rows), np.float32) for weight, _ in self._layers]
        # Feature-major from here on: biases and the reductions over a handful of outputs then run along rows.
        h = h.T
        for (weight, bias), out in zip(self._layers, self._scratch, strict=True):
            np.matmul(weight, h, out=out)
            out += bias
            h = self._activation(out, out=out)
        weight, bias = self._pi
        head = np.matmul(weight, h)
        head += bias
        action, log_prob = self._rule(self, head, u)
        shaped = action.reshape(rows, *self._action.shape).astype(self._action.dtype, copy=False)
        return {"action": shaped, "extras.log_prob": log_prob}

    def _categorical(self, logits: Floats, u: Floats) -> tuple[np.ndarray, Floats]:
        logits -= logits.max(0)
        edges = np.exp(logits)
        for before, edge in pairwise(edges):
            edge += before
        point = u[:, 0] * edges[-1]
        # The last edge is left out: rounding may put it below u, and there is no choice beyond it.
        action = (point >= edges[:-1]).sum(0, dtype=np.int64)
        chosen: Floats = logits.ravel()[action * len(u) + np.arange(len(u))]
        chosen -= np.log(edges[-1])
        return action, chosen

    def _normal(self, mean: Floats, u: Floats) -> tuple[np.ndarray, Floats]:
        assert self._log_std is not None
        z: Floats = torch.special.ndtri(torch.from_numpy(u)).numpy()
        action = z * np.exp(self._log_std)
        action += mean.T
        log_prob = np.einsum("bk,bk->b", z, z)
        log_prob *= np.float32(-0.5)
        log_prob -= np.float32(self._log_std.sum() + _HALF_LOG_TWO_PI * len(self._log_std))
        return action, log_prob


_RULES = {"discrete": NumpyActor._categorical, "box": NumpyActor._normal}


def _flat(x: np.ndarray, rows: int) -> Floats:
    flat = x.reshape(rows, -1)
    if flat.dtype == np.uint8:
        return flat.astype(np.float32) / np.float32(255.0)
    return flat.astype(np.float32, copy=False)


def _relu(x: Floats, out: Floats) -> Floats:
    return np.maximum(x, np.float32(0.0), out=out)
