"""The wire contract: one frozen class per message kind, and the protocol's version.

`docs/protocol.md` says the same in prose; a test holds the two together. What a field means is said there and in
`common/types.py`; how messages become bytes is `codec.py`'s business.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Any

from common.types import Arrays

PROTOCOL = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on every connection. `spec` is an env-server's environment; `streams` are its (slot, life) pairs."""

    protocol: int
    role: str
    name: str
    life: int
    spec: dict[str, Any] | None = None
    streams: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers Hello. `spec` is what the asker needs to start: the environment's for a learner, the policy's for an
    env-server."""

    protocol: int
    life: int
    spec: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """Asks for the actions of `count` environments from `first_env` on, at `step` of their stream."""

    first_env: int
    count: int
    step: int
    min_version: int
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Actions:
    """Answers Act: action, extras.* and state.*, chosen by `version` of the weights."""

    version: int
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Insert:
    """One unroll of a stream for each of `tables`; `steps` and `frames` are the stream's totals, this one included."""

    tables: tuple[str, ...]
    slot: str
    life: int
    number: int
    first_env: int
    steps: int
    frames: int
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inserted:
    """Answers Insert; the stream's next Act must be answered by `min_version` or newer."""

    min_version: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Asks `table` for `n` items to be trained on by `version`; acknowledges the Batch before it."""

    table: str
    n: int
    version: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers Sample. From a FIFO table: `unrolls` as received, arrays named `<i>/<name>`, and their `origins` [n, 2]
    int64 (stream life, number); from a ring: gathered arrays, with `keys` and `probabilities` among them. `mass` and
    `size` describe the table; `missing` names the groups a synchronous batch went without. Arrays `counters` [K, 4]
    int64 (stream life, number, steps, frames), `episode_returns`, `episode_lengths` [E] and `episode_origins` [E, 2]
    tell what was inserted since the last Batch."""

    unrolls: int
    size: int
    mass: float
    discarded: int
    missing: tuple[str, ...] = ()
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdatePriorities:
    """New `priorities` for `keys` of `table`, drawn in replay life `life`."""

    table: str
    life: int
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GetWeights:
    """Asks for weights newer than `have` (-1: any); answered when there are."""

    have: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Answers GetWeights: array `weights` (uint8), its `layout`, the specs, and the scalars that acting needs."""

    version: int
    env: dict[str, Any]
    policy: dict[str, Any]
    layout: str
    acting: dict[str, float]
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotModified:
    """Answers GetWeights when its long poll ends without news."""

    version: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The learner's last word to a replay-server: the job is done."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Answers Finish, with the last `counters` and `episode_*`, as in Batch."""

    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ok:
    """Done, nothing to add."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The request is parked, for `reason`; it renews the asker's deadline."""

    reason: str


@dataclass(frozen=True, slots=True)
class Error:
    """The request failed; `finished` ends the asker with exit code 0."""

    code: str
    message: str
    remedy: str = ""


# The position is the number on the wire: append, never reorder.
_Experience = Hello | Welcome | Act | Actions | Insert | Inserted | Sample | Batch | UpdatePriorities
Message = _Experience | GetWeights | Weights | NotModified | Finish | Finished | Ok | Wait | Error

KINDS: tuple[type[Message], ...] = typing.get_args(Message)
