"""Tasks made to need memory: an environment of which the policy sees only some numbers of each observation.

A factory for `env.id`; knows nothing of how environments are stepped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from common.errors import ConfigError


class _Partial(gymnasium.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Shows the entries `keep` of a flat observation."""

    def __init__(self, env: gymnasium.Env[np.ndarray, Any], keep: Sequence[int]) -> None:
        super().__init__(env)
        whole = env.observation_space
        if not isinstance(whole, gymnasium.spaces.Box) or len(whole.shape) != 1:
            raise ConfigError(f"env.kwargs.id: observations of {whole} are no flat Box", "choose another environment")
        if not keep or not set(keep) <= set(range(whole.shape[0])):
            raise ConfigError(
                f"env.kwargs.keep={list(keep)}: an observation has the entries 0 to {whole.shape[0] - 1}",
                "list one or more of those",
            )
        self._keep = list(keep)
        self.observation_space = gymnasium.spaces.Box(whole.low[self._keep], whole.high[self._keep], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self._keep]


def make(id: str, keep: Sequence[int], **kwargs: Any) -> gymnasium.Env[np.ndarray, Any]:
    """Makes the Gymnasium environment `id` with `kwargs`, showing only the entries `keep` of its observations.

    CartPole's [0, 2] are its two positions, without their velocities. Raises ConfigError naming env.kwargs.
    """
    return _Partial(gymnasium.make(id, **kwargs), keep)
