"""The words every role shares: array, action and environment specs, versions, and the shapes of an unroll.

Owns no I/O and knows no simulator, no network and no algorithm.

Shapes are time-major. An **unroll** is T steps of B environments:

    observation.<name>  [T+1, B, ...]  the last row is the bootstrap observation; where it is a stack of k frames,
                        [T+k, B, ...]  single frames, of which the first k are the stack of row 0
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
import reprlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

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


def show_version(version: int) -> str:
    """Writes a version as people read it: "life 2, update 1500"."""
    return f"life {version >> _UPDATE_BITS}, update {version_updates(version)}"


def select(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the entries whose name starts with `prefix.`, under the rest of their names."""
    start = len(prefix) + 1
    return {name[start:]: value for name, value in arrays.items() if name.startswith(prefix + ".")}


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Puts `prefix.` before each name; the inverse of `select`."""
    return {f"{prefix}.{name}": value for name, value in arrays.items()}


def _number_type(dtype: str) -> str:
    """Gives numpy's own name of a dtype of numbers or booleans."""
    try:
        known = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if known.kind not in "biuf":
        raise ValueError(f"{dtype} holds no numbers")
    return known.str


DType = Annotated[str, AfterValidator(_number_type)]
Shape = tuple[Annotated[int, Field(ge=0)], ...]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Name, dtype and shape of one array, per environment (no time, no batch axis).

    A `stack` of k > 1 says that axis 0 holds the last k frames, oldest first; zeros stand before an episode's first.
    """

    name: str
    dtype: DType
    shape: Shape
    stack: int = 1


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """An action space: `discrete` (n), `multi_discrete`, `multi_binary` (n per component), `box` (low, high), `tuple`.

    `n` counts the choices of each component ((2,) for CartPole, () for a box); `low` and `high` are flat, one number
    per component, and empty unless the kind is `box`. `shape` is one action's: () for discrete. An action of a `tuple`
    is one vector: the actions of its `parts`, which are no tuples, flat and one after another.
    """

    kind: Literal["discrete", "multi_discrete", "multi_binary", "box", "tuple"]
    dtype: DType
    shape: Shape
    n: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    parts: tuple[ActionSpec, ...] = ()

    @property
    def size(self) -> int:
        """The number of components of one action."""
        return math.prod(self.shape)


class _Wired:
    """What specs that travel have in common."""

    __slots__ = ()

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_wire(cls, value: Any) -> Self:
        """Gives the spec that `to_wire` wrote; raises ProtocolError for anything else."""
        try:
            return cast(Self, _ADAPTERS[cls].validate_python(value))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ProtocolError(f"{reprlib.repr(value)} is no {cls.__name__}: {where:.100}: {first['msg']}") from None


@dataclass(frozen=True, slots=True)
class EnvSpec(_Wired):
    """What a policy must know of an environment; observations are a flat dict of named arrays."""

    id: str
    observations: tuple[ArraySpec, ...]
    action: ActionSpec
    frame_skip: int = 1


@dataclass(frozen=True, slots=True)
class PolicySpec(_Wired):
    """What acting adds to the data: `extras` go into the unroll, `state` rides from step to step."""

    extras: tuple[ArraySpec, ...] = ()
    state: tuple[ArraySpec, ...] = ()


# Building one takes milliseconds, and specs come with every version of the weights.
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (EnvSpec, PolicySpec)}
