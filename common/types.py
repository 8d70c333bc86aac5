"""The words every role shares: array, action and environment specs, versions, and the shapes of an unroll.

Owns no I/O and knows no simulator, no network and no algorithm.

Shapes are time-major. An **unroll** is T steps of B environments:

    observation.<name>  [T+1, B, ...]  the last row is the bootstrap observation
    first               [T+1, B] bool  the observation is the first of its episode
    action              [T, B, ...]
    reward              [T, B] float32 as the environment gave it
    terminated          [T, B] bool    the episode ended here: do not bootstrap
    truncated           [T, B] bool    it was cut here: bootstrap from the true last observation
    valid               [T, B] bool    False where a simulator only reset: no decision, no step, no loss
    extras.<name>       [T, B, ...]    what the behaviour policy said of its action (log-probability, ...)
    state.<name>        [B, ...]       recurrent state before the first step
    reward_before       [B] float32    the reward that came with the first observation
    versions            [T] int64      the version of the weights that chose each step's actions
    final_index         [K] int32      t * B + b of each step whose true last observation lies in final.<name>
    final.<name>        [K, ...]       those observations; a step not listed has it in observation[t + 1]
    episode_returns     [E] float32    undiscounted returns of the episodes that ended in this unroll
    episode_lengths     [E] int32      their lengths in steps
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.errors import ProtocolError

Arrays = dict[str, np.ndarray]

_UPDATE_BITS = 40


def new_life() -> int:
    """Draws the random 63-bit number that names one life of a process or a stream."""
    return secrets.randbits(62) + 1


def make_version(ordinal: int, updates: int) -> int:
    """Packs (learner life ordinal, updates) into one integer that compares in that order."""
    return ordinal << _UPDATE_BITS | updates


def version_updates(version: int) -> int:
    """Gives the number of updates behind a version."""
    return version & ((1 << _UPDATE_BITS) - 1)


def version_ordinal(version: int) -> int:
    """Gives the ordinal of the learner life that made a version."""
    return version >> _UPDATE_BITS


def show_version(version: int) -> str:
    """Writes a version as people read it: "life 2, update 1500"."""
    return f"life {version_ordinal(version)}, update {version_updates(version)}"


def select(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the entries whose name starts with `prefix.`, under the rest of their names."""
    start = len(prefix) + 1
    return {name[start:]: value for name, value in arrays.items() if name.startswith(prefix + ".")}


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Puts `prefix.` before each name; the inverse of `select`."""
    return {f"{prefix}.{name}": value for name, value in arrays.items()}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Name, dtype and shape of one array, per environment (no time, no batch axis)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * math.prod(self.shape))

    def to_wire(self) -> list[Any]:
        return [self.name, self.dtype, list(self.shape)]

    @classmethod
    def from_wire(cls, value: Any) -> ArraySpec:
        try:
            name, dtype, shape = value
            spec = cls(str(name), np.dtype(dtype).str, tuple(int(n) for n in shape))
        except (TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"not an array spec: {value!r:.100}") from error
        if min(spec.shape, default=0) < 0 or np.dtype(spec.dtype).kind not in "biuf":
            raise ProtocolError(f"array spec {spec.name!r} has dtype {spec.dtype} and shape {spec.shape}")
        return spec


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """An action space: `discrete` (n), `multi_discrete` (n per component) or `box` (low, high).

    `n` counts the choices of each component ((2,) for CartPole, () for a box); `low` and `high` are flat, one number
    per component, and empty unless the kind is `box`. `shape` is one action's: () for discrete.
    """

    kind: Literal["discrete", "multi_discrete", "box"]
    dtype: str
    shape: tuple[int, ...]
    n: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """The number of components of one action."""
        return math.prod(self.shape)

    def to_wire(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "n": list(self.n),
            "low": list(self.low),
            "high": list(self.high),
        }

    @classmethod
    def from_wire(cls, value: Any) -> ActionSpec:
        try:
            kind = value["kind"]
            if kind not in ("discrete", "multi_discrete", "box"):
                raise ValueError(kind)
            return cls(
                kind,
                np.dtype(value["dtype"]).str,
                tuple(int(n) for n in value["shape"]),
                tuple(int(n) for n in value["n"]),
                tuple(float(x) for x in value["low"]),
                tuple(float(x) for x in value["high"]),
            )
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ProtocolError(f"not an action spec: {value!r:.100}") from error


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What a policy must know of an environment; observations are a flat dict of named arrays."""

    id: str
    observations: tuple[ArraySpec, ...]
    action: ActionSpec
    frame_skip: int = 1

    def to_wire(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "observations": [spec.to_wire() for spec in self.observations],
            "action": self.action.to_wire(),
            "frame_skip": self.frame_skip,
        }

    @classmethod
    def from_wire(cls, value: Any) -> EnvSpec:
        try:
            return cls(
                str(value["id"]),
                tuple(ArraySpec.from_wire(spec) for spec in value["observations"]),
                ActionSpec.from_wire(value["action"]),
                int(value["frame_skip"]),
            )
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ProtocolError(f"not an environment spec: {value!r:.100}") from error


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What acting adds to the data: `extras` go into the unroll, `state` rides from step to step."""

    extras: tuple[ArraySpec, ...] = ()
    state: tuple[ArraySpec, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return {"extras": [s.to_wire() for s in self.extras], "state": [s.to_wire() for s in self.state]}

    @classmethod
    def from_wire(cls, value: Any) -> PolicySpec:
        try:
            return cls(
                tuple(ArraySpec.from_wire(spec) for spec in value["extras"]),
                tuple(ArraySpec.from_wire(spec) for spec in value["state"]),
            )
        except (TypeError, KeyError) as error:
            raise ProtocolError(f"not a policy spec: {value!r:.100}") from error
