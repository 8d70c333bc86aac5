"""What the env-server asks of a simulator: a group of environments stepped together into arrays it is given.

Owns the interface, and which file serves which `env.id`; each simulator family has a file of its own beside this one.
Knows no network and no unroll.
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from common.config import EnvConfig
from common.errors import MISTAKES, ConfigError
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

    @property
    def holds_gil(self) -> bool:
        """Whether a step is Python code, which keeps the interpreter's lock while it computes."""

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

    @property
    def tallies(self) -> Mapping[str, int]:
        """Cumulative counts by name over finished episodes, like achievements unlocked; empty where there are none."""

    def render(self) -> np.ndarray | None:
        """Gives a picture [H, W, 3] uint8 of the first environment, or None where none can be drawn."""

    def close(self) -> None:
        """Frees the simulators."""


# Families stepped natively, by the form of their ids; every other id goes to Gymnasium's own environments.
_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"(ale_py:)?ALE/\w+-v5", "atari"),
    (r"(CartPole|Acrobot|Pendulum)-v1|MountainCar(Continuous)?-v0", "classic_control"),
    (r"Crafter(No)?Reward-v1", "crafter"),
    (r"headrace/Null-v0", "null"),
    (
        r"(HalfCheetah|Hopper|Walker2d|Ant|Humanoid|Swimmer|Inverted(Double)?Pendulum|Reacher|Pusher)-v5",
        "mujoco",
    ),
)


def raised(env_id: str, call: str, error: Exception) -> ConfigError:
    """Gives the ConfigError that says what an environment's own `call` has raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"env.id={env_id!r}: its {call} raises {type(error).__name__}: {error}"
    return ConfigError(f"{text} ({Path(place.filename).name}:{place.lineno})", "mend the environment, or env.kwargs")


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None, at_least: bool = False) -> Backend:
    """Gives `num_envs` environments of `config.id`; raises ConfigError naming env.id or env.kwargs and the remedy.

    With `at_least` there may be more, where agents come in several: whoever does not choose `env.envs` asks so.
    A native family that cannot honour `env.kwargs` or draw in `render_mode` leaves the id to Gymnasium; one that is
    asked for a mask from info refuses.
    """
    try:
        return _made(config, num_envs, render_mode, at_least)
    except MISTAKES as error:
        raise raised(config.id, "constructor", error) from error


def _made(config: EnvConfig, num_envs: int, render_mode: str | None, at_least: bool) -> Backend:
    # A simulator's library is loaded only where it is asked for, and its file needs the names above.
    native = next((module for form, module in _FAMILIES if re.fullmatch(form, config.id)), None)
    if native is not None and config.vectorized:
        family = importlib.import_module(f"services.env_server.backends.{native}")
        backend: Backend | None = family.make_backend(config, num_envs, render_mode)
        if backend is not None:
            from services.env_server.backends.info_mask import refuse

            refuse(config, f"native environments ({native})", "leave it out, or set env.vectorized=false")
            return backend
    from services.env_server.backends import gymnasium

    return gymnasium.make_backend(config, num_envs, render_mode, at_least)
