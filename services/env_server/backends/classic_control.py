"""Gymnasium's classic control, a whole group at a time: CartPole, Acrobot, Pendulum and both MountainCars.

Owns their dynamics in numpy, in the plain environments' own arithmetic: the same state and action give the same next
state, bit for bit, wherever numpy's sin, cos and pow are the C library's. Knows no network and no unroll, and draws
no pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import pi
from typing import Protocol

import gymnasium
import numpy as np

from common.config import EnvConfig
from common.types import Arrays, EnvSpec
from services.env_server.backends import NO_FINALS, Finals
from services.env_server.backends import gymnasium as plain

log = logging.getLogger("headrace.env")

_NO_LIMIT = 1 << 62  # which Gymnasium writes as -1


class Dynamics(Protocol):
    """What moves one kind of environment; `state` is [S, B] float64, and each kind says what its rows are."""

    state: np.ndarray

    def draw(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Gives the states [S, K] in which the environments `which` [K] begin an episode."""

    def step(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        """Moves every state by one step, and writes the rewards and who terminated, [B] each."""

    def observe(self, state: np.ndarray, observation: np.ndarray) -> None:
        """Writes the observations [K, O] of the states [S, K]."""


def make_backend(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> ClassicControl | None:
    """Gives the group; None, which leaves it to Gymnasium, for pictures and arguments that are not vectorised here."""
    make, known = _FAMILY[config.id]
    kwargs = {key: value for key, value in config.kwargs.items() if key in known and isinstance(value, int | float)}
    limit = config.kwargs.get("max_episode_steps", gymnasium.spec(config.id).max_episode_steps)
    limit = _NO_LIMIT if limit == -1 else limit
    rest = config.kwargs.keys() - kwargs.keys() - {"max_episode_steps"}
    if render_mode is not None or rest or not isinstance(limit, int) or limit < 1:
        log.info("%s is left to Gymnasium: render_mode=%s, env.kwargs=%s", config.id, render_mode, config.kwargs)
        return None
    reference = plain.make_backend(config, 1)
    reference.close()
    return ClassicControl(reference.spec, make(num_envs, **kwargs), limit)


class ClassicControl:
    """A group of one kind: the episodes, their limit and their resets; an episode that ends is reset in that step."""

    holds_gil = False

    def __init__(self, spec: EnvSpec, dynamics: Dynamics, limit: int) -> None:
        self.spec = spec
        self.dynamics = dynamics
        self.num_envs = dynamics.state.shape[1]
        self._limit = limit
        self._clock = 0
        self._started = np.zeros(self.num_envs, np.int64)
        self._rng = np.random.default_rng()

    def reset(self, seed: int, observation: Arrays) -> None:
        self._rng = np.random.default_rng(seed)
        self._restart(np.arange(self.num_envs), observation["obs"])

    def step(
        self,
        action: np.ndarray,
        observation: Arrays,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        valid: np.ndarray,
    ) -> Finals:
        rows = observation["obs"]
        self._clock += 1
        self.dynamics.step(action, reward, terminated)
        self.dynamics.observe(self.dynamics.state, rows)
        np.less_equal(self._started, self._clock - self._limit, out=truncated)
        valid.fill(True)
        (ended,) = np.logical_or(terminated, truncated).nonzero()
        if not len(ended):
            return NO_FINALS
        finals = Finals(ended.astype(np.int32), {"obs": rows.take(ended, axis=0)})
        self._restart(ended, rows)
        return finals

    @property
    def tallies(self) -> Mapping[str, int]:
        return {}

    def render(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        """Frees nothing: the group is arrays alone."""

    def _restart(self, which: np.ndarray, rows: np.ndarray) -> None:
        drawn = self.dynamics.draw(which, self._rng)
        first = np.empty((len(which), rows.shape[1]), rows.dtype)
        self.dynamics.observe(drawn, first)
        rows[which] = first
        for row, values in zip(self.dynamics.state, drawn, strict=True):
            row[which] = values
        self._started[which] = self._clock


class CartPole:
    """Cart-pole after Barto, Sutton and Anderson (1983): position and angle, then the velocities of both."""

    _GRAVITY, _TAU = 9.8, 0.02
    _POLE = 0.1
    _MASS = _POLE + 1.0
    _LENGTH = 0.5
    _MOMENT = _POLE * _LENGTH
    _EDGE, _LEAN = 2.4, 12 * 2 * pi / 360

    def __init__(self, num_envs: int, sutton_barto_reward: bool = False) -> None:
        # Accelerations lie below the velocities, so that one pass moves all four rows by the rows two below.
        self._rows = np.zeros((6, num_envs))
        self.state = self._rows[:4]
        self._sutton_barto = sutton_barto_reward
        # A pass over 4,096 environments takes about a microsecond, and fresh memory as much again.
        self._work = np.empty((4, num_envs))
        self._leaning = np.empty(num_envs, np.bool_)

    def draw(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-0.05, 0.05, (4, len(which)))

    def step(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        self._accelerate(action)
        np.multiply(self._rows[2:], self._TAU, out=self._work)
        self.state += self._work
        size = np.absolute(self.state[0], out=self._work[0])
        np.greater(size, self._EDGE, out=terminated)
        np.absolute(self.state[1], out=size)
        terminated |= np.greater(size, self._LEAN, out=self._leaning)
        if self._sutton_barto:
            np.subtract(0.0, terminated, out=reward)
        else:
            reward.fill(1.0)

    def observe(self, state: np.ndarray, observation: np.ndarray) -> None:
        position, angle, velocity, spin = state
        _write((position, velocity, angle, spin), observation)

    def _accelerate(self, action: np.ndarray) -> None:
        """Writes the accelerations, each operation in the order in which the plain environment rounds."""
        sin, cos, force, scratch = self._work
        _, angle, _, spin, cart, pole = self._rows
        np.sin(angle, out=sin)
        np.cos(angle, out=cos)
        np.multiply(action, 20.0, out=force)
        force -= 10.0
        np.multiply(spin, spin, out=cart)
        cart *= self._MOMENT
        cart *= sin
        cart += force
        cart /= self._MASS
        np.multiply(sin, self._GRAVITY, out=pole)
        np.multiply(cos, cart, out=scratch)
        pole -= scratch
        np.multiply(cos, cos, out=scratch)
        scratch *= self._POLE
        scratch /= self._MASS
        np.subtract(4.0 / 3.0, scratch, out=scratch)
        scratch *= self._LENGTH
        pole /= scratch
        np.multiply(pole, self._MOMENT, out=scratch)
        scratch *= cos
        scratch /= self._MASS
        cart -= scratch


class Acrobot:
    """The two-link swing-up of Sutton (1996), as in the book: two angles, two angular velocities."""

    _DT = 0.2
    _FASTEST = np.array([[4 * pi], [9 * pi]])

    def __init__(self, num_envs: int) -> None:
        self.state = np.zeros((4, num_envs))

    def draw(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-0.1, 0.1, (4, len(which))).astype(np.float32)

    def step(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        state, torque = self.state, action - 1.0
        half = self._DT / 2.0
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + half * k1, torque)
        k3 = self._derivative(state + half * k2, torque)
        k4 = self._derivative(state + self._DT * k3, torque)
        state += self._DT / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles, spins = state[:2], state[2:]
        while (over := angles > pi).any():
            np.subtract(angles, 2 * pi, out=angles, where=over)
        while (under := angles < -pi).any():
            np.add(angles, 2 * pi, out=angles, where=under)
        np.clip(spins, -self._FASTEST, self._FASTEST, out=spins)
        np.greater(-np.cos(angles[0]) - np.cos(angles[1] + angles[0]), 1.0, out=terminated)
        np.subtract(terminated, 1.0, out=reward)

    def observe(self, state: np.ndarray, observation: np.ndarray) -> None:
        _write((np.cos(state[0]), np.sin(state[0]), np.cos(state[1]), np.sin(state[1]), *state[2:]), observation)

    def _derivative(self, state: np.ndarray, torque: np.ndarray) -> np.ndarray:
        first, second, first_spin, second_spin = state
        sin, cos = np.sin(second), np.cos(second)
        d1 = 0.25 + (1.25 + cos) + 1.0 + 1.0
        d2 = 0.25 + 0.5 * cos + 1.0
        phi2 = 4.9 * np.cos(first + second - pi / 2.0)
        phi1 = -0.5 * _squared(second_spin) * sin - second_spin * first_spin * sin
        phi1 += 1.5 * 9.8 * np.cos(first - pi / 2)
        phi1 += phi2
        second_pull = torque + d2 / d1 * phi1 - 0.5 * _squared(first_spin) * sin - phi2
        second_pull /= 1.25 - _squared(d2) / d1
        return np.stack((first_spin, second_spin, -(d2 * second_pull + phi1) / d1, second_pull))


class Pendulum:
    """The swing-up of a pendulum by a weak motor: angle, angular velocity."""

    def __init__(self, num_envs: int, g: float = 10.0) -> None:
        self.state = np.zeros((2, num_envs))
        self._pull = 3 * g / 2.0

    def draw(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn: np.ndarray = rng.uniform(-1.0, 1.0, (2, len(which))) * np.array([[pi], [1.0]])
        return drawn

    def step(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        angle, spin = self.state
        torque = np.clip(action[:, 0], -2.0, 2.0)
        from_top = (angle + pi) % (2 * pi) - pi
        # The torque's share stays in float32, as one action's does in the plain environment.
        np.negative(from_top * from_top + 0.1 * (spin * spin) + 0.001 * (torque * torque), out=reward)
        spin += (self._pull * np.sin(angle) + 3.0 * torque) * 0.05
        np.clip(spin, -8, 8, out=spin)
        angle += spin * 0.05
        terminated.fill(False)

    def observe(self, state: np.ndarray, observation: np.ndarray) -> None:
        _write((np.cos(state[0]), np.sin(state[0]), state[1]), observation)


class MountainCar:
    """The car of Moore (1990) that must swing back to climb, pushed left, not at all or right: position, velocity."""

    def __init__(self, num_envs: int, goal_velocity: float = 0) -> None:
        self.state = np.zeros((2, num_envs))
        self._goal_velocity = goal_velocity

    def draw(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _at_rest(rng, len(which))

    def step(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        position, velocity = self.state
        _roll(position, velocity, (action - 1) * 0.001 + np.cos(3 * position) * -0.0025)
        np.logical_and(position >= 0.5, velocity >= self._goal_velocity, out=terminated)
        reward.fill(-1.0)

    def observe(self, state: np.ndarray, observation: np.ndarray) -> None:
        _write(state, observation)


class MountainCarContinuous:
    """The same car under a force in [-1, 1], which costs; the goal pays 100.

    The plain environment computes an episode's first step in float64 and the rest in float32: so does this.
    """

    def __init__(self, num_envs: int, goal_velocity: float = 0) -> None:
        self.state = np.zeros((2, num_envs))
        self._goal_velocity = goal_velocity
        self._fresh = np.empty(0, np.int64)

    def draw(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self._fresh = which
        return _at_rest(rng, len(which))

    def step(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> None:
        force = np.clip(action[:, 0], -1.0, 1.0)
        fresh, self._fresh = self._fresh, np.empty(0, np.int64)
        first = self._rolled(self.state[:, fresh], force[fresh])
        position, velocity = state = self._rolled(self.state.astype(np.float32), force)
        state[:, fresh] = first
        self.state[:] = state
        np.logical_and(position >= 0.45, velocity >= self._goal_velocity, out=terminated)
        np.subtract(100.0 * terminated, np.square(force, dtype=np.float64) * 0.1, out=reward)

    def observe(self, state: np.ndarray, observation: np.ndarray) -> None:
        _write(state, observation)

    def _rolled(self, state: np.ndarray, force: np.ndarray) -> np.ndarray:
        """Moves the states, in their own dtype; the push is float32 in both, less a slope of float64."""
        position, velocity = state
        slope = 0.0025 * np.cos((3 * position).astype(np.float64))
        _roll(position, velocity, force * 0.0015 - slope.astype(np.float32))
        return state


def _at_rest(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.stack((rng.uniform(-0.6, -0.4, count), np.zeros(count)))


def _roll(position: np.ndarray, velocity: np.ndarray, push: np.ndarray) -> None:
    """Moves cars in place, within their valley and their greatest speed; the left end stops them."""
    velocity += push
    np.clip(velocity, -0.07, 0.07, out=velocity)
    position += velocity
    np.clip(position, -1.2, 0.6, out=position)
    left = position.dtype.type(-1.2)
    velocity[(position == left) & (velocity < 0)] = 0


def _squared(values: np.ndarray) -> np.ndarray:
    # The plain environment squares by the C library's pow, which is off by one in the last bit now and then;
    # float_power calls it too, where square and power do not.
    squares: np.ndarray = np.float_power(values, 2.0)
    return squares


def _write(columns: np.ndarray | tuple[np.ndarray, ...], observation: np.ndarray) -> None:
    for column, values in enumerate(columns):
        observation[:, column] = values


# What makes each kind, and the arguments it takes besides `max_episode_steps`.
_FAMILY: dict[str, tuple[Callable[..., Dynamics], frozenset[str]]] = {
    "CartPole-v1": (CartPole, frozenset({"sutton_barto_reward"})),
    "Acrobot-v1": (Acrobot, frozenset()),
    "Pendulum-v1": (Pendulum, frozenset({"g"})),
    "MountainCar-v0": (MountainCar, frozenset({"goal_velocity"})),
    "MountainCarContinuous-v0": (MountainCarContinuous, frozenset({"goal_velocity"})),
}
