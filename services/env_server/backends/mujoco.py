"""Gymnasium's v5 MuJoCo environments, a whole group stepped natively on the thread that asks.

Owns how MuJoCo runs many simulations of one model, and when episodes end and begin. What an environment observes and
is paid is in mujoco_tasks.py. Knows no network and no unroll.

Model, spaces, time step, time limit and default arguments are read off one plain environment, so both backends agree.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import Arrays, EnvSpec
from services.env_server.backends import NO_FINALS, Backend, Finals
from services.env_server.backends.gymnasium import frame_skip_of
from services.env_server.backends.mujoco_tasks import EVERY, TASKS, Simulations, Task
from services.env_server.backends.native_warnings import route_warnings
from services.env_server.backends.spaces import action_putter, action_spec, observation_leaves

log = logging.getLogger("headrace.env")

_NO_LIMIT = np.iinfo(np.int64).max


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> Backend | None:
    """Gives the group, or None where Gymnasium's own environments must serve: to draw, for arguments other than
    numbers, or without MuJoCo's batches; raises ConfigError naming env.kwargs."""
    if render_mode is not None:
        return None
    try:
        importlib.import_module("mujoco.batch")
        defaults = _numbers(config.id)
        foreign = ", ".join(sorted(config.kwargs.keys() - defaults.keys() - {"max_episode_steps"}))
        reason = foreign and f"env.kwargs has {foreign}"
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        reason = f"{error}; pip install 'mujoco>=4'"
    if reason:
        log.info("%s is stepped by Gymnasium, environment by environment, which is slower: %s", config.id, reason)
        return None
    route_warnings(config.id)
    try:
        plain = gymnasium.make(config.id, disable_env_checker=True, **config.kwargs)
        simulator: Any = plain.unwrapped
        plan = TASKS[config.id]
        native = EachInTurn if plan.reads_forces else Together
        simulations: Simulations = native(simulator.model, num_envs, simulator.frame_skip)
        settings = defaults | config.kwargs
        task = plan.task(simulations, settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"env.id={config.id!r} was not made of env.kwargs={config.kwargs}: {error}",
            "give env.kwargs that its constructor takes",
        ) from error
    draw = partial(plan.draw, simulator.model, settings.get("reset_noise_scale", 0.0))
    return MujocoBackend(config, plain, simulations, task, draw)


def _numbers(env_id: str) -> dict[str, Any]:
    """Gives the arguments of an id's constructor that are numbers, switches or ranges, with their defaults."""
    creator = load_env_creator(str(gymnasium.spec(env_id).entry_point))
    parameters = inspect.signature(creator).parameters
    return {name: p.default for name, p in parameters.items() if isinstance(p.default, int | float | tuple)}


class Together:
    """Every simulation in one native call; MuJoCo keeps their states side by side and works on one after another."""

    def __init__(self, model: Any, num_envs: int, frame_skip: int) -> None:
        # Env-servers are the unit of scaling: the thread that asks does the work, and no other waits for it.
        self._batch: Any = importlib.import_module("mujoco.batch").Batch(model, num_envs, nthread=1)
        self._substeps = frame_skip
        self.num_envs, self.model, self.dt = num_envs, model, model.opt.timestep * frame_skip
        self._qpos, self._qvel, self._ctrl = (self.bind(name) for name in ("qpos", "qvel", "ctrl"))

    def bind(self, name: str) -> np.ndarray:
        field: np.ndarray = self._batch.bind(name)
        return field

    def step(self, action: np.ndarray) -> None:
        self._ctrl[:] = action
        self._batch.step(nstep=self._substeps)

    def place(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        self._batch.reset(rows, stage=0)
        self._qpos[rows] = qpos
        self._qvel[rows] = qvel
        self._batch.forward(rows)


class EachInTurn:
    """One native step per simulation, each loaded into the same mjData, and the forces on its bodies after it.

    A batch cannot ask for those forces (mj_rnePostConstraint), which stand on the contacts of the integrator's last
    stage; the loop costs 2 % of an Ant's step. One call that steps a batch which keeps an mjData each, and the forces
    from a copy of each of these, took 12 % longer.
    """

    def __init__(self, model: Any, num_envs: int, frame_skip: int) -> None:
        self._mujoco: Any = importlib.import_module("mujoco")
        mujoco = self._mujoco
        self._whole = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._data = mujoco.MjData(model)
        self._substeps = frame_skip
        self.num_envs, self.model, self.dt = num_envs, model, model.opt.timestep * frame_skip
        self._states = np.zeros((num_envs, mujoco.mj_stateSize(model, self._whole)))
        self._fields: dict[str, np.ndarray] = {}
        # Of each field the mjData's own array, and one view per simulation of where it is kept.
        self._copies: list[tuple[np.ndarray, list[np.ndarray]]] = []

    def bind(self, name: str) -> np.ndarray:
        if name not in self._fields:
            source = getattr(self._data, name)
            self._fields[name] = np.zeros((self.num_envs, *source.shape), source.dtype)
            self._copies.append((source, list(self._fields[name])))
        return self._fields[name]

    def step(self, action: np.ndarray) -> None:
        mujoco, model, data = self._mujoco, self.model, self._data
        for b, controls in enumerate(action):
            mujoco.mj_setState(model, data, self._states[b], self._whole)
            data.ctrl[:] = controls
            mujoco.mj_step(model, data, self._substeps)
            mujoco.mj_rnePostConstraint(model, data)
            self._keep(b)

    def place(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        mujoco, model, data = self._mujoco, self.model, self._data
        for b, positions, velocities in zip(rows.tolist(), qpos, qvel, strict=True):
            mujoco.mj_resetData(model, data)
            data.qpos[:] = positions
            data.qvel[:] = velocities
            mujoco.mj_forward(model, data)
            self._keep(b)

    def _keep(self, b: int) -> None:
        self._mujoco.mj_getState(self.model, self._data, self._states[b], self._whole)
        for source, kept in self._copies:
            kept[b][:] = source


class MujocoBackend:
    """Environments reset in the step that ends their episode, to states drawn by the group's own generator."""

    holds_gil = False

    def __init__(
        self,
        config: EnvConfig,
        plain: gymnasium.Env[Any, Any],
        simulations: Simulations,
        task: Task,
        draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        (leaf,) = observation_leaves(config.id, plain.observation_space)
        ticks = frame_skip_of(config, plain)
        self.spec = EnvSpec(config.id, (leaf.spec,), action_spec(config.id, plain.action_space), ticks)
        self.num_envs = simulations.num_envs
        self.simulations = simulations
        self._task = task
        self._draw = draw
        self._put_action = action_putter(plain.action_space)
        limit = plain.spec.max_episode_steps if plain.spec is not None else None
        self._limit = _NO_LIMIT if limit is None else limit
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._random = np.random.default_rng()

    def reset(self, seed: int, observation: Arrays) -> None:
        self._random = np.random.default_rng(seed)
        self._begin(np.arange(self.num_envs), observation["obs"])

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        reward[:], terminated[:] = self._task.step(self._put_action(action))
        self._elapsed += 1
        np.greater_equal(self._elapsed, self._limit, out=truncated)
        valid.fill(True)
        seen = observation["obs"]
        np.concatenate(self._task.observe(EVERY), axis=1, out=seen)
        ended = np.flatnonzero(terminated | truncated)
        if not ended.size:
            return NO_FINALS
        finals = Finals(ended.astype(np.int32), {"obs": seen[ended]})
        self._begin(ended, seen)
        return finals

    @property
    def tallies(self) -> Mapping[str, int]:
        return {}

    def render(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Does nothing: memory is all that a simulation holds."""

    def _begin(self, rows: np.ndarray, seen: np.ndarray) -> None:
        self.simulations.place(rows, *self._draw(self._random, len(rows)))
        self._elapsed[rows] = 0
        seen[rows] = np.concatenate(self._task.observe(rows), axis=1)
