"""What the MuJoCo environments of Gymnasium's v5 family observe, are paid for and end at, by id.

Owns these rules, written over whole groups [B, ...] in Gymnasium's order and precision of arithmetic. Knows no
simulator library (it sees simulations as arrays under the names of MuJoCo's mjData), no time limit and no start.

Like Gymnasium it reads derived fields (positions of bodies, forces) as a step leaves them, one stage of the integrator
behind the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from services.env_server.backends.mujoco_starts import Draw, even, normal, pusher, reacher

Settings = Mapping[str, Any]
Rows = np.ndarray | slice
EVERY = slice(None)


class Simulations(Protocol):
    """B simulations of one model; `dt` is the seconds of simulated time in one step."""

    @property
    def num_envs(self) -> int: ...

    @property
    def model(self) -> Any: ...

    @property
    def dt(self) -> float: ...

    def bind(self, name: str) -> np.ndarray:
        """Gives the live array [B, ...] of an mjData field; which fields are read is told before the first step."""

    def step(self, action: np.ndarray) -> None:
        """Advances every simulation by one step under controls [B, nu]."""

    def place(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Resets the simulations `rows` [K] to positions [K, nq] and velocities [K, nv] at rest with the world."""


class Task(Protocol):
    """The rules of one environment over the simulations that it was made of."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps the simulations under float32 actions within bounds; gives rewards and terminations, [B] each."""

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        """Gives the observations of `rows` in parts [K, ...], to be laid side by side."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an id is made; `reads_forces`: on bodies (cfrc_ext), which MuJoCo computes only when asked after a step."""

    task: Callable[[Simulations, Settings], Task]
    draw: Draw
    reads_forces: bool = False


class Runner:
    """HalfCheetah and Swimmer: paid for speed along x, less the cost of control; never ends."""

    def __init__(self, simulations: Simulations, settings: Settings, hidden: int) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._forward_weight = settings["forward_reward_weight"]
        self._control_weight = settings["ctrl_cost_weight"]
        self._hidden = _hidden(settings, hidden)
        self._never = np.zeros(len(self._qpos), np.bool_)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._qpos[:, 0].copy()
        self._simulations.step(action)
        velocity = (self._qpos[:, 0] - before) / self._simulations.dt
        return self._forward_weight * velocity - self._control_weight * _squares(action), self._never

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        return self._qpos[rows, self._hidden :], self._qvel[rows]


class Walker:
    """Hopper and Walker2d: paid for speed along x and for standing, less the cost of control; may end in a fall."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._forward_weight = settings["forward_reward_weight"]
        self._control_weight = settings["ctrl_cost_weight"]
        self._healthy_reward = settings["healthy_reward"]
        self._terminates = settings["terminate_when_unhealthy"]
        self._z, self._angle = _interval(settings["healthy_z_range"]), _interval(settings["healthy_angle_range"])
        # Hopper's alone.
        self._state = _interval(settings["healthy_state_range"]) if "healthy_state_range" in settings else None
        self._hidden = _hidden(settings, 1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._qpos[:, 0].copy()
        self._simulations.step(action)
        velocity = (self._qpos[:, 0] - before) / self._simulations.dt
        healthy = _within(self._qpos[:, 1], self._z) & _within(self._qpos[:, 2], self._angle)
        if self._state is not None:
            healthy &= _within(self._qpos[:, 2:], self._state).all(axis=1)
            healthy &= _within(self._qvel, self._state).all(axis=1)
        earned = self._forward_weight * velocity + healthy * self._healthy_reward
        return earned - self._control_weight * _squares(action), ~healthy & self._terminates

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        return self._qpos[rows, self._hidden :], np.clip(self._qvel[rows], -10, 10)


class Ant:
    """Paid for the speed of one body along x and for standing, less the costs of control and of contact."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._forces = simulations.bind("cfrc_ext")
        self._x = simulations.bind("xpos")[:, simulations.model.body(settings["main_body"]).id, 0]
        self._forward_weight = settings["forward_reward_weight"]
        self._control_weight = settings["ctrl_cost_weight"]
        self._contact_weight = settings["contact_cost_weight"]
        self._healthy_reward = settings["healthy_reward"]
        self._terminates = settings["terminate_when_unhealthy"]
        self._z = _interval(settings["healthy_z_range"])
        self._force_range = _interval(settings["contact_force_range"])
        self._hidden = _hidden(settings, 2)
        self._shows_forces = settings["include_cfrc_ext_in_observation"]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._x.copy()
        self._simulations.step(action)
        velocity = (self._x - before) / self._simulations.dt
        low, high = self._z
        healthy = (low <= self._qpos[:, 2]) & (self._qpos[:, 2] <= high)
        healthy &= np.isfinite(self._qpos).all(axis=1) & np.isfinite(self._qvel).all(axis=1)
        earned = velocity * self._forward_weight + healthy * self._healthy_reward
        contact = self._contact_weight * _squares(np.clip(self._forces, *self._force_range))
        return earned - (self._control_weight * _squares(action) + contact), ~healthy & self._terminates

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        seen = self._qpos[rows, self._hidden :], self._qvel[rows]
        return (*seen, _flat(np.clip(self._forces[rows, 1:], *self._force_range))) if self._shows_forces else seen


class Humanoid:
    """Paid for the speed of its centre of mass along x and for standing, less the costs of control and of contact."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._forces = simulations.bind("cfrc_ext")
        self._x = simulations.bind("xipos")[:, :, 0]
        self._mass = simulations.model.body_mass
        self._forward_weight = settings["forward_reward_weight"]
        self._control_weight = settings["ctrl_cost_weight"]
        self._contact_weight, self._contact_range = settings["contact_cost_weight"], settings["contact_cost_range"]
        self._healthy_reward = settings["healthy_reward"]
        self._terminates = settings["terminate_when_unhealthy"]
        self._z = _interval(settings["healthy_z_range"])
        self._hidden = _hidden(settings, 2)
        # Of forces and inertias the world's own row, of actuator forces the free joint's, say nothing.
        rest = ("cinert", 1), ("cvel", 1), ("qfrc_actuator", 6), ("cfrc_ext", 1)
        shown = [(name, skip) for name, skip in rest if settings[f"include_{name}_in_observation"]]
        self._shown = [simulations.bind(name)[:, skip:] for name, skip in shown]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._centre()
        self._simulations.step(action)
        velocity = (self._centre() - before) / self._simulations.dt
        healthy = _within(self._qpos[:, 2], self._z)
        earned = self._forward_weight * velocity + healthy * self._healthy_reward
        # The controls are float64 in the simulator, and so is their cost.
        control = self._control_weight * _squares(action.astype(np.float64))
        contact = np.clip(self._contact_weight * _squares(self._forces), *self._contact_range)
        return earned - (control + contact), ~healthy & self._terminates

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        return self._qpos[rows, self._hidden :], self._qvel[rows], *(_flat(field[rows]) for field in self._shown)

    def _centre(self) -> np.ndarray:
        centre: np.ndarray = np.einsum("b,nb->n", self._mass, self._x) / self._mass.sum()
        return centre


class Pendulum:
    """InvertedPendulum: paid 1 for each step upright."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._simulations.step(action)
        upright = np.isfinite(self._qpos).all(axis=1) & np.isfinite(self._qvel).all(axis=1)
        upright &= np.abs(self._qpos[:, 1]) <= 0.2
        return upright.astype(np.float64), ~upright

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        return self._qpos[rows], self._qvel[rows]


class DoublePendulum:
    """InvertedDoublePendulum: paid for being upright, less the tip's distance from its place and the links' speed."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._tip = simulations.bind("site_xpos")[:, 0]
        self._constraint = simulations.bind("qfrc_constraint")
        self._healthy_reward = settings["healthy_reward"]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._simulations.step(action)
        x, y = self._tip[:, 0], self._tip[:, 2]
        fallen = y <= 1
        distance = 0.01 * x**2 + (y - 2) ** 2
        speed = 1e-3 * self._qvel[:, 1] ** 2 + 5e-3 * self._qvel[:, 2] ** 2
        return self._healthy_reward * ~fallen - distance - speed, fallen

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        links = self._qpos[rows, 1:]
        speeds, push = np.clip(self._qvel[rows], -10, 10), np.clip(self._constraint[rows, :1], -10, 10)
        return self._qpos[rows, :1], np.sin(links), np.cos(links), speeds, push


class Reacher:
    """Paid for a fingertip near its target, less the cost of control; never ends."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._fingertip, self._target = (_body(simulations, name) for name in ("fingertip", "target"))
        self._distance_weight = settings["reward_dist_weight"]
        self._control_weight = settings["reward_control_weight"]
        self._never = np.zeros(len(self._qpos), np.bool_)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._simulations.step(action)
        distance = np.linalg.norm(self._fingertip - self._target, axis=1)
        return -distance * self._distance_weight - _squares(action) * self._control_weight, self._never

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        angles, apart = self._qpos[rows, :2], (self._fingertip[rows] - self._target[rows])[:, :2]
        return np.cos(angles), np.sin(angles), self._qpos[rows, 2:], self._qvel[rows, :2], apart


class Pusher:
    """Paid for an object near its goal and an arm near the object, less the cost of control; never ends."""

    def __init__(self, simulations: Simulations, settings: Settings) -> None:
        self._simulations = simulations
        self._qpos, self._qvel = simulations.bind("qpos"), simulations.bind("qvel")
        self._arm, self._object, self._goal = (_body(simulations, name) for name in ("tips_arm", "object", "goal"))
        self._near_weight = settings["reward_near_weight"]
        self._distance_weight = settings["reward_dist_weight"]
        self._control_weight = settings["reward_control_weight"]
        self._never = np.zeros(len(self._qpos), np.bool_)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._simulations.step(action)
        near = np.linalg.norm(self._object - self._arm, axis=1) * self._near_weight
        distance = np.linalg.norm(self._object - self._goal, axis=1) * self._distance_weight
        return -distance - _squares(action) * self._control_weight - near, self._never

    def observe(self, rows: Rows) -> tuple[np.ndarray, ...]:
        bodies = self._arm[rows], self._object[rows], self._goal[rows]
        return self._qpos[rows, :7], self._qvel[rows, :7], *bodies


def _squares(values: np.ndarray) -> np.ndarray:
    """Gives the sum [B] of each environment's squares, in the precision of `values` as Gymnasium does."""
    squares: np.ndarray = np.square(_flat(values)).sum(axis=1)
    return squares


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _hidden(settings: Settings, positions: int) -> int:
    return positions if settings["exclude_current_positions_from_observation"] else 0


def _interval(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    return low, high


def _within(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return (bounds[0] < values) & (values < bounds[1])


def _body(simulations: Simulations, name: str) -> np.ndarray:
    return simulations.bind("xpos")[:, simulations.model.body(name).id]


TASKS: Mapping[str, Plan] = {
    "HalfCheetah-v5": Plan(partial(Runner, hidden=1), normal),
    "Hopper-v5": Plan(Walker, even),
    "Walker2d-v5": Plan(Walker, even),
    "Ant-v5": Plan(Ant, normal, reads_forces=True),
    "Humanoid-v5": Plan(Humanoid, even, reads_forces=True),
    "Swimmer-v5": Plan(partial(Runner, hidden=2), even),
    "InvertedPendulum-v5": Plan(Pendulum, even),
    "InvertedDoublePendulum-v5": Plan(DoublePendulum, normal),
    "Reacher-v5": Plan(Reacher, reacher),
    "Pusher-v5": Plan(Pusher, pusher),
}
