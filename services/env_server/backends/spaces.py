"""Gymnasium spaces as Headrace's specs: which array of an observation goes where, and how an action is put.

Knows spaces alone, no environment. Supported: Box, Discrete and MultiDiscrete, and for observations Dict of those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from common.errors import ConfigError
from common.types import ActionSpec, ArraySpec

Space = gymnasium.Space[Any]
PutAction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of an observation: its spec, the Dict keys that lead to it, and a category's lowest number."""

    spec: ArraySpec
    path: tuple[str, ...] = ()
    start: np.ndarray | None = None

    def read(self, observation: Any) -> Any:
        """Gives the array out of one observation, or out of a batch of them; categories count from 0."""
        for key in self.path:
            observation = observation[key]
        return observation if self.start is None else observation - self.start


def observation_leaves(env_id: str, space: Space) -> tuple[Leaf, ...]:
    """Gives the arrays of an observation: "obs", or the keys of a Dict joined by "/"; raises ConfigError."""
    return tuple(_leaves(env_id, space, ()))


def action_spec(env_id: str, space: Space) -> ActionSpec:
    """Gives the spec of the actions that a policy chooses for `space`, counted from 0; raises ConfigError."""
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", np.dtype(np.int64).str, (), n=(int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec("multi_discrete", np.dtype(np.int64).str, space.shape, n=tuple(space.nvec.ravel().tolist()))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(bound.ravel().tolist()) for bound in (space.low, space.high))
        return ActionSpec("box", np.dtype(space.dtype).str, space.shape, low=low, high=high)
    raise _unsupported(env_id, "action", space, "Discrete, MultiDiscrete and Box of floats")


def action_putter(space: Space) -> PutAction:
    """Gives what turns a policy's actions [B, ...] into new arrays that a space `action_spec` knows contains.

    Categories get their lowest number added, a Box is clipped to its bounds.
    """
    shape = (-1, *(space.shape or ()))
    dtype = np.dtype(space.dtype)
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        return lambda action: np.clip(action.reshape(shape), low, high).astype(dtype, copy=False)
    start: Any = getattr(space, "start", 0)
    return lambda action: (action.reshape(shape) + start).astype(dtype, copy=False)


def _leaves(env_id: str, space: Space, path: tuple[str, ...]) -> list[Leaf]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, value in space.items() for leaf in _leaves(env_id, value, (*path, key))]
    name = "/".join(path) or "obs"
    if isinstance(space, spaces.Box):
        return [Leaf(ArraySpec(name, np.dtype(space.dtype).str, space.shape), path)]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start = np.asarray(space.start, np.int64)
        spec = ArraySpec(name, np.dtype(np.int64).str, tuple(space.shape or ()))
        return [Leaf(spec, path, start if start.any() else None)]
    raise _unsupported(env_id, f"observation {name!r}", space, "Box, Discrete, MultiDiscrete and Dict of those")


def _unsupported(env_id: str, what: str, space: Space, supported: str) -> ConfigError:
    return ConfigError(
        f"env.id={env_id!r}: {what} space {space} is not supported",
        f"supported are {supported}; wrap the environment in a factory and name that as package.module:factory",
    )
