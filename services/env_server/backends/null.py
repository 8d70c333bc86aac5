"""An environment that simulates nothing: observations of a given size, given a set time after each action.

For measuring the pipeline itself, and for standing in for slow simulators and for hundreds of env-servers. Knows no
network and no unroll.

An observation's first number counts the steps of its episode (in the dtype's own range: a byte starts again after
255); the rest never changes and is drawn from the seed. Every step gives reward 1, every episode is terminated after
`episode_steps`, and the first episodes begin part-way through, so that not all of a group end together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError, model_validator

from common.config import EnvConfig, Section
from common.errors import ConfigError, nearest
from common.types import ActionSpec, Arrays, ArraySpec, DType, EnvSpec
from services.env_server.backends import NO_FINALS, Finals


class NullConfig(Section):
    """What `env.kwargs` may hold; by default an observation and the actions are CartPole's in shape."""

    observation_bytes: int | None = Field(None, ge=1, description="an observation is so many bytes")
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field((4,), description="instead of observation_bytes, with dtype")
    dtype: DType = "<f4"
    actions: int = Field(2, ge=1, description="n of the discrete action")
    step_s: float = Field(0.0, ge=0, description="seconds that one environment steps; a group's step one after another")
    sleep: bool = Field(False, description="sleep through step_s, which else is time of the core, kept busy")
    episode_steps: int = Field(500, ge=1, description="steps per episode")

    @model_validator(mode="after")
    def _one_size(self) -> NullConfig:
        if self.observation_bytes is not None and {"shape", "dtype"} & self.model_fields_set:
            raise ValueError("observation_bytes and shape or dtype exclude each other")
        return self

    @property
    def observation(self) -> ArraySpec:
        if self.observation_bytes is not None:
            return ArraySpec("obs", "|u1", (self.observation_bytes,))
        return ArraySpec("obs", self.dtype, self.shape)


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> NullBackend:
    """Gives the group; raises ConfigError naming the first of `env.kwargs` that is wrong. Nothing can be drawn."""
    try:
        settings = NullConfig.model_validate(config.kwargs)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["env.kwargs", *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            known = [f"env.kwargs.{name}" for name in NullConfig.model_fields]
            raise ConfigError(f"unknown key {key}={first['input']!r}", nearest(key, known)) from None
        raise ConfigError(f"{key}={first['input']!r}: {first['msg']}", f"see NullConfig in {__name__}") from None
    return NullBackend(config, settings, num_envs)


class NullBackend:
    """A group that only counts its steps, and lets the time pass that it was told to take."""

    def __init__(self, config: EnvConfig, settings: NullConfig, num_envs: int) -> None:
        action = ActionSpec("discrete", np.dtype(np.int64).str, (), n=(settings.actions,))
        self.spec = EnvSpec(config.id, (settings.observation,), action, config.frame_skip)
        self.num_envs = num_envs
        self.holds_gil = not settings.sleep
        self._settings = settings
        self._counter: tuple[slice | int, ...] = (slice(None), *(0 for _ in settings.observation.shape))
        # A busy simulator needs so much of a core, and takes longer where it shares one.
        self._clock = time.perf_counter if settings.sleep else time.thread_time
        self._age = np.zeros(num_envs, np.int64)
        self._pattern = np.empty(0)

    def reset(self, seed: int, observation: Arrays) -> None:
        array = self.spec.observations[0]
        drawn = np.random.default_rng(seed).integers(0, 256, (self.num_envs, *array.shape), np.uint8)
        self._pattern = drawn.astype(array.dtype)
        self._age = np.arange(self.num_envs) * self._settings.episode_steps // self.num_envs
        self._write(observation["obs"])

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        until = self._clock() + self._settings.step_s * self.num_envs
        rows = observation["obs"]
        self._age += 1
        self._write(rows)
        reward.fill(1.0)
        truncated.fill(False)
        valid.fill(True)
        np.equal(self._age, self._settings.episode_steps, out=terminated)
        finals = NO_FINALS
        (ended,) = terminated.nonzero()
        if len(ended):
            finals = Finals(ended.astype(np.int32), {"obs": rows.take(ended, axis=0)})
            self._age[ended] = 0
            rows[self._counter] = self._age
        self._wait(until)
        return finals

    @property
    def tallies(self) -> Mapping[str, int]:
        return {}

    def render(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Frees nothing: the group is arrays alone."""

    def _write(self, rows: np.ndarray) -> None:
        # A simulator writes its observation, so this does too: pages never written would cost nothing to send.
        rows[...] = self._pattern
        rows[self._counter] = self._age

    def _wait(self, until: float) -> None:
        if self._settings.sleep:
            time.sleep(max(0.0, until - self._clock()))
        else:
            while self._clock() < until:
                pass
