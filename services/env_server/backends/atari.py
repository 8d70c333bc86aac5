"""Atari 2600 games stepped together by ALE's vector environment: `ALE/<Game>-v5` as stacks of 84 x 84 grey frames.

Owns the games' options (`env.kwargs`), the cutting of games into lives, and true game scores. Knows no network and no
unroll. `env.vectorized: false` gives Gymnasium's plain environment (210 x 160 RGB, its own arguments) instead.

The defaults are those of ALE's vector environment for the registered id, but rewards are never clipped. The two usual
protocols, as `env.kwargs`:

- Machado et al. 2018: `{noop_max: 0, use_fire_reset: false, full_action_space: true}`; actions are sticky by default.
- DQN (Mnih et al. 2015): `{repeat_action_probability: 0, episodic_life: true}`.

A stack holds the newest frames of its episode, and zeros before its first, as ALE's do; also where the episode is a
life, of which ALE's would go on with frames of the life before.

With `episodic_life`, the returns that an unroll reports are those of lives; `tallies` count whole games and their
scores. The game goes on with its next life, unlike under ALE's own option of that name, which starts a new game and so
never shows the later lives. FIRE is pressed for the agent when a game starts, not when a life does: in games that wait
for it, as Breakout does, the agent has to press it itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config import EnvConfig
from common.errors import ConfigError, nearest
from common.types import Arrays, ArraySpec, EnvSpec
from services.env_server.backends import NO_FINALS, Backend, Finals
from services.env_server.backends.spaces import action_spec

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

SIDE = 84


class AtariOptions(BaseModel):
    """What `env.kwargs` may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame_skip: int = Field(4, ge=1, description="frames per step; the newer two are joined by their maximum")
    stack_num: int = Field(4, ge=1, description="frames in an observation")
    noop_max: int = Field(30, ge=0, description="a game starts after fewer no-ops than this, at random; 0: none")
    use_fire_reset: bool = Field(True, description="press FIRE when a game starts, where the game has that action")
    repeat_action_probability: float = Field(0.25, ge=0, lt=1, description="of each frame's action to be the last one")
    episodic_life: bool = Field(False, description="end the episode, not the game, when a life is lost")
    full_action_space: bool = Field(False, description="all 18 actions, not only those that the game uses")
    max_num_frames_per_episode: int = Field(108_000, ge=1, description="frames after which a game is truncated")
    num_threads: int = Field(1, ge=1, description="threads that step this group")


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None) -> Backend | None:
    """Gives `num_envs` games; None where ALE or the game is missing or a window is asked for, which Gymnasium answers.

    Raises ConfigError naming env.kwargs or env.frame_skip and the remedy.
    """
    try:
        from ale_py.vector_env import AtariVectorEnv
    except ImportError:
        return None
    registered = gymnasium.registry.get(config.id.rpartition(":")[2])
    if registered is None or render_mode not in (None, "rgb_array"):
        return None
    options = _options(config)
    venv = AtariVectorEnv(
        registered.kwargs["game"],
        num_envs,
        num_threads=options.num_threads,
        max_num_frames_per_episode=options.max_num_frames_per_episode,
        repeat_action_probability=options.repeat_action_probability,
        full_action_space=options.full_action_space,
        autoreset_mode="SameStep",
        img_height=SIDE,
        img_width=SIDE,
        stack_num=options.stack_num,
        frameskip=options.frame_skip,
        noop_max=options.noop_max,
        life_loss_info=options.episodic_life,
        reward_clipping=False,
        use_fire_reset=options.use_fire_reset,
    )
    return AtariBackend(config.id, venv, options, drawn=render_mode is not None)


class AtariBackend:
    """Games of one ROM, each reset in the step that ends it; the worker threads emulate without Python's lock."""

    holds_gil = False

    def __init__(self, env_id: str, venv: AtariVectorEnv, options: AtariOptions, drawn: bool) -> None:
        self.num_envs = n = int(venv.num_envs)
        self._stack = options.stack_num
        frames = ArraySpec("obs", np.dtype(np.uint8).str, (self._stack, SIDE, SIDE), stack=self._stack)
        self.spec = EnvSpec(env_id, (frames,), action_spec(env_id, venv.single_action_space), options.frame_skip)
        self._venv = venv
        self._drawn = drawn
        self._newest = np.zeros((SIDE, SIDE), np.uint8)
        # The frame number at which each game began: it changes exactly when a game does.
        self._began = np.zeros(n, np.int64)
        # How many of the oldest frames of each stack show the life before.
        self._foreign = np.zeros(n, np.int64)
        self._score = np.zeros(n, np.int64)
        self._tallies = {"games": 0, "score": 0}

    def reset(self, seed: int, observation: Arrays) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs) & 0x7FFFFFFF
        seen, info = self._venv.reset(seed=seeds.astype(np.int64))
        self._began = info["frame_number"] - info["episode_frame_number"]
        self._foreign[:] = 0
        self._score[:] = 0
        observation["obs"][:] = seen
        self._draw(observation["obs"])

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        self._venv.send(action)
        valid.fill(True)
        self._foreign -= self._foreign > 0
        seen, reward[:], terminated[:], truncated[:], info = self._venv.recv()
        self._score += reward.astype(np.int64)
        stacks = observation["obs"]
        stacks[:] = seen
        _blank(stacks, self._foreign)
        ended = np.flatnonzero(terminated | truncated)
        finals = self._end(ended, stacks, info) if len(ended) else NO_FINALS
        self._draw(stacks)
        return finals

    @property
    def tallies(self) -> Mapping[str, int]:
        return self._tallies

    def render(self) -> np.ndarray | None:
        return np.repeat(self._newest[:, :, None], 3, axis=2) if self._drawn else None

    def close(self) -> None:
        # ALE stops its threads when the last reference goes.
        del self._venv

    def _end(self, ended: np.ndarray, stacks: np.ndarray, info: dict[str, np.ndarray]) -> Finals:
        """Ends the episodes of `ended` [K]: whole games, whose stacks are new already, and lives, whose are not."""
        began = info["frame_number"] - info["episode_frame_number"]
        over = (began != self._began)[ended]
        self._began = began
        games = ended[over]
        self._tallies = {
            "games": self._tallies["games"] + len(games),
            "score": self._tallies["score"] + int(self._score[games].sum()),
        }
        self._score[games] = 0
        last = stacks[ended]
        # ALE fills these rows of games that were reset, and no others.
        last[over] = info["final_obs"][games]
        _blank(last, self._foreign[ended])
        self._foreign[ended] = np.where(over, 0, self._stack - 1)
        _blank(stacks, self._foreign)
        return Finals(ended.astype(np.int32), {"obs": last})

    def _draw(self, stacks: np.ndarray) -> None:
        if self._drawn:
            self._newest = stacks[0, -1].copy()


def _blank(stacks: np.ndarray, foreign: np.ndarray) -> None:
    """Zeroes the `foreign` [B] oldest frames of each stack [B, k, ...]."""
    for b in np.flatnonzero(foreign):
        stacks[b, : foreign[b]] = 0


def _options(config: EnvConfig) -> AtariOptions:
    try:
        options = AtariOptions.model_validate(config.kwargs)
    except ValidationError as error:
        first = error.errors()[0]
        key, value = str(first["loc"][0]), first["input"]
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"env.id={config.id!r} takes no env.kwargs.{key}={value!r}",
                f"{nearest(key, AtariOptions.model_fields)}; or env.vectorized=false, for the plain environment's own",
            ) from None
        raise ConfigError(f"env.kwargs.{key}={value!r}: {first['msg']}", "mend it, or leave it out") from None
    # The general key only says how an environment counts frames; here the option decides and the spec says it.
    if config.frame_skip not in (1, options.frame_skip):
        raise ConfigError(
            f"env.frame_skip={config.frame_skip} disagrees with env.kwargs.frame_skip={options.frame_skip} of "
            f"env.id={config.id!r}",
            "leave env.frame_skip out: the frames of Atari are counted by env.kwargs.frame_skip",
        )
    return options
