"""Environments for job tests: CartPole with a step that takes real time, so that a job lasts as long as its faults."""

from __future__ import annotations

import time
from typing import Any

import gymnasium

STEP_S = 1e-4


class Paced(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes at least STEP_S per step."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        time.sleep(STEP_S)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, bool(terminated), bool(truncated), info


def cartpole() -> gymnasium.Env[Any, Any]:
    return Paced(gymnasium.make("CartPole-v1"))


class Poisoned(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives a reward that is not a number in every so many steps."""

    def __init__(self, env: gymnasium.Env[Any, Any], every: int) -> None:
        super().__init__(env)
        self._every, self._steps = every, 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float("nan") if self._steps % self._every == 0 else reward, terminated, truncated, info


def poisoned_cartpole(every: int = 200) -> gymnasium.Env[Any, Any]:
    return Poisoned(cartpole(), every)
