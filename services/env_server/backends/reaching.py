"""A goal task with a sparse reward, in the form that hindsight wants: Gymnasium's Reacher, told only if it is there.

A factory for `env.id`, and the reward as a function of goals for `algorithm.reward`; knows nothing of learning.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

NEAR = 0.02  # metres: a fifth of a link of the arm
_JOINTS, _TARGET, _OFFSET = [0, 1, 2, 3, 6, 7], slice(4, 6), slice(8, 10)


def reward(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
    """Gives [n] of goals [n, 2]: 0 where the fingertip is within 2 cm of the target, -1 elsewhere."""
    away: np.ndarray = np.linalg.norm(achieved - desired, axis=-1) >= NEAR
    return -away.astype(np.float32)


class _Reaching(gymnasium.Wrapper[Any, np.ndarray, np.ndarray, np.ndarray]):
    """Shows the joints, where the fingertip is and where it should be."""

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        sizes = {"observation": len(_JOINTS), "achieved_goal": 2, "desired_goal": 2}
        self.observation_space = gymnasium.spaces.Dict(
            {name: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        return _goals(seen), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, _, terminated, truncated, info = self.env.step(action)
        shown = _goals(seen)
        return shown, float(reward(shown["achieved_goal"], shown["desired_goal"])), terminated, truncated, info


def _goals(seen: np.ndarray) -> dict[str, np.ndarray]:
    target = seen[_TARGET].astype(np.float32)
    fingertip = target + seen[_OFFSET].astype(np.float32)
    return {"observation": seen[_JOINTS].astype(np.float32), "achieved_goal": fingertip, "desired_goal": target}


def make(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Makes Reacher-v5 with `kwargs`: 50 steps an episode, each worth -1 unless the fingertip is at the target."""
    return _Reaching(gymnasium.make("Reacher-v5", **kwargs))
