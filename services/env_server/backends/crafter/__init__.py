"""Crafter (Hafner 2021): the package's game, played in numpy and plain Python instead of by the package.

The same seeds and actions give the worlds, frames, rewards and achievements of crafter 1.8.3, bit for bit, with one
exception: where a chunk loses one of several creatures, the package picks among them in the order of a set of objects,
which differs from run to run; here they stand in the order they came to the chunk. Only the textures are the package's
own. Owns the group of environments and its tallies; the game is in the files beside this one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.env_server.backends import NO_FINALS, Finals
from services.env_server.backends.crafter.game import Game, Stage
from services.env_server.backends.crafter.generation import Generator
from services.env_server.backends.crafter.rendering import GetTexture, Painter, grid_of
from services.env_server.backends.crafter.rules import ACHIEVEMENTS, ACTIONS
from services.env_server.backends.crafter.world import Layout

Pair = tuple[int, int]


class Options(BaseModel):
    """What env.kwargs may say, as the package's constructor takes it; the seed is the run's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: Pair = (64, 64)
    view: Pair | int = (9, 9)
    size: Pair | int = (64, 64)
    reward: bool = True
    length: int | None = Field(10_000, ge=0)


class CrafterBackend:
    """A group of games, each reset in the step that ends its episode."""

    holds_gil = True

    def __init__(self, config: EnvConfig, num_envs: int, options: Options, render_mode: str | None) -> None:
        size = _pair(options.size)
        frame = ArraySpec("obs", np.dtype(np.uint8).str, (size[1], size[0], 3))
        action = ActionSpec("discrete", np.dtype(np.int64).str, (), n=(len(ACTIONS),))
        self.spec = EnvSpec(config.id, (frame,), action, config.frame_skip)
        self.num_envs = num_envs
        self._stage = _stage(options, config)
        self._rewarded = options.reward
        self._games: list[Game] = []
        self._tallies = dict.fromkeys(["episodes", *(f"achievement/{name}" for name in ACHIEVEMENTS)], 0)
        self._picture = np.zeros(frame.shape, np.uint8) if render_mode == "rgb_array" else None

    def reset(self, seed: int, observation: Arrays) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs) & 0x7FFFFFFF
        self._games = [Game(self._stage, own) for own in seeds.tolist()]
        frames = observation["obs"]
        for game, frame in zip(self._games, frames, strict=True):
            game.reset(frame)
        self._keep(frames)

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        frames = observation["obs"]
        terminated.fill(False)
        truncated.fill(False)
        valid.fill(True)
        rewards: list[float] = []
        ended: list[int] = []
        last: list[np.ndarray] = []
        for b, (game, chosen, frame) in enumerate(zip(self._games, action.tolist(), frames, strict=True)):
            gained, dead, over = game.step(chosen, frame)
            rewards.append(gained)
            if dead or over:
                terminated[b] = dead
                truncated[b] = not dead
                ended.append(b)
                last.append(frame.copy())
                self._count(game)
                game.reset(frame)
        reward[:] = rewards if self._rewarded else 0
        self._keep(frames)
        return Finals(np.array(ended, np.int32), {"obs": np.stack(last)}) if ended else NO_FINALS

    @property
    def tallies(self) -> Mapping[str, int]:
        return self._tallies

    def render(self) -> np.ndarray | None:
        return self._picture

    def close(self) -> None:
        self._games = []

    def _count(self, game: Game) -> None:
        self._tallies["episodes"] += 1
        for name, achieved in zip(ACHIEVEMENTS, game.player.achieved, strict=True):
            self._tallies[f"achievement/{name}"] += achieved

    def _keep(self, frames: np.ndarray) -> None:
        # Drawing anew would draw the night's noise anew, and change what follows.
        if self._picture is not None:
            self._picture = frames[0].copy()


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> CrafterBackend:
    """Gives CrafterReward-v1 or CrafterNoReward-v1; raises ConfigError naming env.id or env.kwargs and the remedy."""
    try:
        options = Options.model_validate({"reward": config.id == "CrafterReward-v1", **config.kwargs})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"env.id={config.id!r}: env.kwargs.{'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}",
            f"give some of {', '.join(Options.model_fields)}; the seed is the run's",
        ) from error
    return CrafterBackend(config, num_envs, options, render_mode)


def crafter_score(tallies: Mapping[str, int]) -> float:
    """Gives the Crafter score in per cent, the geometric mean of the achievements' success rates (Hafner 2021):
    exp(mean(ln(1 + rate))) - 1 over the rates in per cent of the tallied episodes; 0 before the first."""
    episodes = max(1, tallies["episodes"])
    rates = (100 * tallies[f"achievement/{name}"] / episodes for name in ACHIEVEMENTS)
    return math.expm1(sum(map(math.log1p, rates)) / len(ACHIEVEMENTS))


def _stage(options: Options, config: EnvConfig) -> Stage:
    view, size = _pair(options.view), _pair(options.size)
    grid = grid_of(view)
    if min(*options.area, *grid) < 1 or size[0] < 2 * view[0] or size[1] < 2 * view[1]:
        raise ConfigError(
            f"env.kwargs={config.kwargs}: {size} pixels of {view} cells, {view[1] - grid[1]} rows of them for items, "
            f"show nothing of an area of {options.area}",
            "give an area of at least (1, 1), a view with a row above the items, and 2 pixels to a cell",
        )
    layout = Layout(options.area, margin=max(grid) // 2 + 1)
    painter = Painter(view, size, _textures(config.id))
    return Stage(layout, Generator(layout), painter, 2 * max(view), options.length or 0)


def _textures(env_id: str) -> GetTexture:
    try:
        engine, constants = (importlib.import_module(f"crafter.{part}") for part in ("engine", "constants"))
    except ImportError as error:
        raise ConfigError(
            f"env.id={env_id!r} cannot be imported: {error}", "in the clone: pip install -e '.[crafter]'"
        ) from error
    get: GetTexture = engine.Textures(constants.root / "assets").get
    return get


def _pair(value: Pair | int) -> Pair:
    return (value, value) if isinstance(value, int) else value
