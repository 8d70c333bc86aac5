"""What tables hold and answer: a received unroll, and the answers that a table's `poll` gives to its server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import ProtocolError
from common.types import Arrays, EnvSpec, select


@dataclass(frozen=True, slots=True)
class Unroll:
    """One unroll of one stream as it was received; `arrays` as in common/types.py."""

    slot: str
    life: int
    number: int
    first_env: int
    arrays: Arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class Stored:
    """Answer the Insert behind `token`: its stream's next Act wants `min_version`."""

    token: Any
    min_version: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Answer the Sample behind `token` with unrolls as received (FIFO), or with gathered arrays (rings)."""

    token: Any
    unrolls: tuple[Unroll, ...] = ()
    arrays: Arrays | None = None
    missing: tuple[str, ...] = ()


Answer = Stored | Drawn


_FIXED = {"first", "action", "reward", "terminated", "truncated", "valid", "reward_before", "versions", "final_index"}
_FIXED |= {"episode_returns", "episode_lengths"}


def check_unroll(arrays: Arrays, spec: EnvSpec) -> None:
    """Raises ProtocolError, naming both sides, unless `arrays` are an unroll of `spec` as in common/types.py."""
    reward = arrays.get("reward")
    if reward is None or reward.ndim != 2 or 0 in reward.shape:
        raise ProtocolError("an unroll without reward [T, B]", "send what common/types.py lists")
    steps, envs = reward.shape
    _expect(arrays, "reward", "<f4", (steps, envs))
    _expect(arrays, "action", spec.action.dtype, (steps, envs, *spec.action.shape))
    _expect(arrays, "versions", "<i8", (steps,))
    _expect(arrays, "first", "|b1", (steps + 1, envs))
    _expect(arrays, "reward_before", "<f4", (envs,))
    for name in ("terminated", "truncated", "valid"):
        _expect(arrays, name, "|b1", (steps, envs))
    episodes = arrays.get("episode_returns", np.zeros(0)).size
    _expect(arrays, "episode_returns", "<f4", (episodes,))
    _expect(arrays, "episode_lengths", "<i4", (episodes,))
    finals = arrays.get("final_index", np.zeros(0, np.int32))
    _expect({"final_index": finals}, "final_index", "<i4", (finals.size,))
    if finals.size and not (finals.min() >= 0 and finals.max() < steps * envs):
        raise ProtocolError(f"final_index outside 0 to {steps * envs - 1}")
    for observation in spec.observations:
        name, dtype, shape, stack = observation.name, observation.dtype, observation.shape, observation.stack
        _expect(arrays, f"observation.{name}", dtype, (steps + stack, envs, *(shape if stack == 1 else shape[1:])))
        if "final_index" in arrays:
            _expect(arrays, f"final.{name}", dtype, (finals.size, *shape))
    named = {f"{kind}.{observation.name}" for observation in spec.observations for kind in ("observation", "final")}
    for name in arrays.keys() - named - _FIXED:
        if not name.startswith(("extras.", "state.")):
            raise ProtocolError(f"an unroll with {name!r:.100}, which none has", "send what common/types.py lists")
    for name, array in select("extras", arrays).items():
        _expect({name: array}, name, array.dtype.str, (steps, envs, *array.shape[2:]))
    for name, array in select("state", arrays).items():
        _expect({name: array}, name, array.dtype.str, (envs, *array.shape[1:]))


def _expect(arrays: Arrays, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    array = arrays.get(name)
    if array is None:
        raise ProtocolError(f"an unroll without {name}", "send what common/types.py lists")
    if array.dtype.str != np.dtype(dtype).str or array.shape != shape:
        raise ProtocolError(
            f"{name} of an unroll is {array.dtype.str} {array.shape}, the environment's spec says {dtype} {shape}",
            "run the same environment and version on every env-server",
        )
