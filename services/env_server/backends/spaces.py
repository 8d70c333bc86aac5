"""Gymnasium spaces as Headrace's specs: which array of an observation goes where, and how an action is put.

Knows spaces alone, no environment. Supported: Box, Discrete, MultiDiscrete and MultiBinary; Dict of those, and for
actions Tuple. An action of several spaces is one vector in a policy's eyes, and taken apart here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from common.codec import DTYPES
from common.errors import ConfigError
from common.types import ActionSpec, ArraySpec

Space = gymnasium.Space[Any]
PutAction = Callable[[np.ndarray], Any]
_MANY = "Box, Discrete, MultiDiscrete, MultiBinary, and {} of those, of at most 64 bits a number and not empty"
_ACTIONS = _MANY.format("Dict and Tuple") + "; a Box of floats"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of an observation: its spec, the Dict keys that lead to it, and a category's lowest number."""

    spec: ArraySpec
    path: tuple[Any, ...] = ()
    start: np.ndarray | None = None

    def read(self, observation: Any) -> Any:
        """Gives the array out of one observation, or out of a batch of them; categories count from 0."""
        for key in self.path:
            observation = observation[key]
        return observation if self.start is None else observation - self.start


def observation_leaves(env_id: str, space: Space) -> tuple[Leaf, ...]:
    """Gives the arrays of an observation: "obs", or the keys of a Dict joined by "/"; raises ConfigError."""
    leaves = tuple(_leaves(env_id, space, ()))
    if not leaves:
        raise _unsupported(env_id, "observation", space, _MANY.format("Dict"))
    names = [leaf.spec.name for leaf in leaves]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        text = f"env.id={env_id!r}: two entries of the observation space are called {twice[0]!r}"
        raise ConfigError(text, "rename a key of the Dict: keys that lead to an entry are joined by '/'")
    return leaves


def action_spec(env_id: str, space: Space) -> ActionSpec:
    """Gives the spec of the actions that a policy chooses for `space`, counted from 0; raises ConfigError."""
    if isinstance(space, spaces.Tuple | spaces.Dict):
        parts = tuple(part for inner in _inner(space) for part in _parts(action_spec(env_id, inner)))
        continuous = any(part.kind == "box" for part in parts)
        dtype = np.dtype(np.float64 if continuous else np.int64).str
        if parts:
            return ActionSpec("tuple", dtype, (sum(part.size for part in parts),), parts=parts)
    if not _sendable(space):
        raise _unsupported(env_id, "action", space, _ACTIONS)
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", np.dtype(np.int64).str, (), n=(int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec("multi_discrete", np.dtype(np.int64).str, space.shape, n=tuple(space.nvec.ravel().tolist()))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec("multi_binary", np.dtype(np.int64).str, space.shape, n=(2,) * math.prod(space.shape))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(bound.ravel().tolist()) for bound in (space.low, space.high))
        return ActionSpec("box", np.dtype(space.dtype).str, space.shape, low=low, high=high)
    raise _unsupported(env_id, "action", space, _ACTIONS)


def action_putter(space: Space) -> PutAction:
    """Gives what turns a policy's actions [B, ...] into what a batch of a space that `action_spec` knows contains.

    That is new arrays [B, ...]; for a Tuple a tuple of them, for a Dict a dict. Categories get their lowest number
    added, a Box is clipped to its bounds.
    """
    if isinstance(space, spaces.Tuple | spaces.Dict):
        return _splitter(space)
    shape = (-1, *(space.shape or ()))
    dtype = np.dtype(space.dtype)
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        return lambda action: np.clip(action.reshape(shape), low, high).astype(dtype, copy=False)
    start: Any = getattr(space, "start", 0)
    return lambda action: (action.reshape(shape) + start).astype(dtype, copy=False)


def action_rows(space: Space, put: Any) -> Iterable[Any]:
    """Gives each environment's own action of what `action_putter` put.

    One choice is a plain int: many environments look tables up with it.
    """
    if isinstance(space, spaces.Discrete):
        return put.tolist()  # type: ignore[no-any-return]
    if isinstance(space, spaces.Tuple):
        return zip(*map(action_rows, space.spaces, put), strict=True)
    if isinstance(space, spaces.Dict):
        columns = zip(*(action_rows(inner, put[key]) for key, inner in space.items()), strict=True)
        return (dict(zip(space.keys(), row, strict=True)) for row in columns)
    return put  # type: ignore[no-any-return]


def _inner(space: spaces.Tuple[Any] | spaces.Dict) -> list[Space]:
    return list(space.spaces if isinstance(space, spaces.Tuple) else space.values())


def _parts(spec: ActionSpec) -> tuple[ActionSpec, ...]:
    return spec.parts or (spec,)


def _splitter(space: spaces.Tuple[Any] | spaces.Dict) -> PutAction:
    inner = _inner(space)
    put = [action_putter(part) for part in inner]
    edges = np.cumsum([_size(part) for part in inner])[:-1]

    def split(action: np.ndarray) -> Any:
        found = [own(columns) for own, columns in zip(put, np.split(action, edges, axis=1), strict=True)]
        return tuple(found) if isinstance(space, spaces.Tuple) else dict(zip(space.keys(), found, strict=True))

    return split


def _size(space: Space) -> int:
    """Gives how many components of the vector a space takes."""
    if isinstance(space, spaces.Tuple | spaces.Dict):
        return sum(map(_size, _inner(space)))
    return math.prod(space.shape or ())


def _leaves(env_id: str, space: Space, path: tuple[Any, ...]) -> list[Leaf]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, value in space.items() for leaf in _leaves(env_id, value, (*path, key))]
    name = "/".join(map(str, path)) or "obs"
    if not _sendable(space):
        raise _unsupported(env_id, f"observation {name!r}", space, _MANY.format("Dict"))
    if isinstance(space, spaces.Box):
        # Little-endian, as all on the wire is.
        return [Leaf(ArraySpec(name, np.dtype(space.dtype).newbyteorder("<").str, space.shape), path)]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start = np.asarray(space.start, np.int64)
        spec = ArraySpec(name, np.dtype(np.int64).str, tuple(space.shape or ()))
        return [Leaf(spec, path, start if start.any() else None)]
    if isinstance(space, spaces.MultiBinary):
        return [Leaf(ArraySpec(name, np.dtype(np.int8).str, space.shape), path)]
    raise _unsupported(env_id, f"observation {name!r}", space, _MANY.format("Dict"))


def _sendable(space: Space) -> bool:
    """Says whether messages carry the arrays of a space that is no Dict or Tuple."""
    return np.dtype(space.dtype).newbyteorder("<").str in DTYPES and math.prod(space.shape or ()) > 0


def _unsupported(env_id: str, what: str, space: Space, supported: str) -> ConfigError:
    return ConfigError(
        f"env.id={env_id!r}: {what} space {space} is not supported",
        f"supported are {supported}; wrap the environment in a factory and name that as package.module:factory",
    )
