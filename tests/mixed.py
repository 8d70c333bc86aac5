"""An environment for job tests whose action is a Dict of all three kinds, with a mask of its choices in `info`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Info = dict[str, Any]


class Mixed(gymnasium.Env[np.ndarray, Info]):
    """Six steps, each worth 1 less how far `push` is from 0; a door or switch that is barred may not be chosen.

    `door` t mod 3 is barred at step t, and `switches` 0 at odd steps. The entries of a mask are those of a Dict in its
    order: `door` has three, `push` none, `switches` two.
    """

    observation_space: gymnasium.Space[Any] = spaces.Box(0.0, 1.0, (6,), np.float32)
    action_space: gymnasium.Space[Any] = spaces.Dict(
        {"door": spaces.Discrete(3), "push": spaces.Box(-1.0, 1.0, (2,), np.float32), "switches": spaces.MultiBinary(2)}
    )

    def _seen(self) -> np.ndarray:
        return np.eye(7, 6, dtype=np.float32)[self._at]

    def _info(self) -> Info:
        return {"action_mask": np.array([*(np.arange(3) != self._at % 3), self._at % 2 == 0, True])}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self._at = 0
        return self._seen(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        mask = self._info()["action_mask"]
        if not mask[action["door"]] or (action["switches"][0] and not mask[3]):
            raise ValueError(f"{action} was barred at step {self._at}: {mask}")
        self._at += 1
        reward = 1.0 - float(np.abs(np.clip(action["push"], -1.0, 1.0)).mean())
        return self._seen(), reward, self._at == 6, False, self._info()
