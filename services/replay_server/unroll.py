"""What tables hold and answer: a received unroll, and the answers that a table's `poll` gives to its server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import ProtocolError
from common.types import Arrays, EnvSpec


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


def check_unroll(arrays: Arrays, spec: EnvSpec) -> None:
    """Raises ProtocolError, naming both sides, unless `arrays` are an unroll of `spec` as in common/types.py."""
    reward = arrays.get("reward")
    if reward is None or reward.ndim != 2 or 0 in reward.shape:
        raise ProtocolError("an unroll without reward [T, B]", "send what common/types.py lists")
    for name, (dtype, shape) in _expected(arrays, spec, *reward.shape).items():
        array = arrays.get(name)
        if array is None:
            raise ProtocolError(f"an unroll without {name}", "send what common/types.py lists")
        if array.dtype.str != np.dtype(dtype).str or array.shape != shape:
            raise ProtocolError(
                f"{name} of an unroll is {array.dtype.str} {array.shape}, the environment's spec says {dtype} {shape}",
                "run the same environment and version on every env-server",
            )
    finals = arrays.get("final_index", np.zeros(0, np.int32))
    if finals.size and not (finals.min() >= 0 and finals.max() < reward.size):
        raise ProtocolError(f"final_index outside 0 to {reward.size - 1}")


def _expected(arrays: Arrays, spec: EnvSpec, steps: int, envs: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Gives dtype and shape of each array that an unroll with these has; raises ProtocolError for one none has."""
    episodes = arrays.get("episode_returns", np.zeros(0)).size
    expected = {
        "first": ("|b1", (steps + 1, envs)),
        "action": (spec.action.dtype, (steps, envs, *spec.action.shape)),
        "reward": ("<f4", (steps, envs)),
        "reward_before": ("<f4", (envs,)),
        "versions": ("<i8", (steps,)),
        "episode_returns": ("<f4", (episodes,)),
        "episode_lengths": ("<i4", (episodes,)),
    }
    expected |= dict.fromkeys(("terminated", "truncated", "valid"), ("|b1", (steps, envs)))
    for seen in spec.observations:
        shape = seen.shape if seen.stack == 1 else seen.shape[1:]
        expected[f"observation.{seen.name}"] = (seen.dtype, (steps + seen.stack, envs, *shape))
    if "final_index" in arrays:
        finals = arrays["final_index"].size
        expected["final_index"] = ("<i4", (finals,))
        expected |= {f"final.{seen.name}": (seen.dtype, (finals, *seen.shape)) for seen in spec.observations}
    for name in arrays.keys() - expected.keys():
        dtype, shape = arrays[name].dtype.str, arrays[name].shape
        if name.startswith("extras."):
            expected[name] = (dtype, (steps, envs, *shape[2:]))
        elif name.startswith("state."):
            expected[name] = (dtype, (envs, *shape[1:]))
        else:
            raise ProtocolError(f"an unroll with {name!r:.100}, which none has", "send what common/types.py lists")
    return expected
