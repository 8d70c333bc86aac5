"""What the env-server asks of a simulator: a group of environments stepped together into arrays it is given.

Owns the interface alone; each simulator family has a file of its own beside this one. Knows no network and no unroll.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from common.config import EnvConfig
from common.types import Arrays, EnvSpec


@dataclass(frozen=True, slots=True)
class Finals:
    """True last observations [K, ...] of the environments `indices` [K] int32, whose episodes ended in this step and
    whose observation row already holds the first observation of the next episode. Never written again."""

    indices: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    observation: Arrays = field(default_factory=dict)


NO_FINALS = Finals()


class Backend(Protocol):
    """A group of `num_envs` environments; every array given to it is a view [B, ...] that it fills whole."""

    @property
    def spec(self) -> EnvSpec: ...

    @property
    def num_envs(self) -> int: ...

    def reset(self, seed: int, observation: Arrays) -> None:
        """Starts every environment anew, each under its own seed drawn from `seed`; writes the first observations."""

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        """Steps every environment once and resets those whose episode ended.

        An environment whose episode ended is either reset at once and listed in the Finals, or left with its last
        observation in `observation` and reset by the next step, which ignores its action and says `valid` False,
        reward 0, terminated and truncated False.
        """

    def render(self) -> np.ndarray | None:
        """Gives a picture [H, W, 3] uint8 of the first environment, or None where none can be drawn."""

    def close(self) -> None:
        """Frees the simulators."""


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> Backend:
    """Gives `num_envs` environments of `config.id`; raises ConfigError naming env.id or env.kwargs and the remedy."""
    # A simulator's library is loaded only where it is asked for, and its file needs the names above.
    from services.env_server.backends import gymnasium

    return gymnasium.make_backend(config, num_envs, render_mode)
