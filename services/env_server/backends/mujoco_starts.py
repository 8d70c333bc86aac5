"""Where episodes of Gymnasium's v5 MuJoCo environments start: its distributions, drawn for many episodes at once.

Knows no simulator library: of a model it reads the sizes and the reference positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Of a model and a noise scale, draws K states: positions [K, nq] and velocities [K, nv].
Draw = Callable[[Any, float, np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def even(model: Any, noise: float, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities even about the model's own."""
    qpos = model.qpos0 + random.uniform(-noise, noise, (count, model.nq))
    return qpos, random.uniform(-noise, noise, (count, model.nv))


def normal(model: Any, noise: float, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions even, velocities normal about the model's own."""
    qpos = model.qpos0 + random.uniform(-noise, noise, (count, model.nq))
    return qpos, noise * random.standard_normal((count, model.nv))


def reacher(model: Any, noise: float, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reacher's: a bent arm at near rest, a target within its reach."""
    qpos = model.qpos0 + random.uniform(-0.1, 0.1, (count, model.nq))
    qpos[:, -2:] = _draw_until(random, count, (-0.2, -0.2), (0.2, 0.2), lambda distance: distance < 0.2)
    qvel = random.uniform(-0.005, 0.005, (count, model.nv))
    qvel[:, -2:] = 0
    return qpos, qvel


def pusher(model: Any, noise: float, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pusher's: a straight arm at near rest, an object away from the goal."""
    qpos = np.tile(model.qpos0, (count, 1))
    qpos[:, -4:-2] = _draw_until(random, count, (-0.3, -0.2), (0, 0.2), lambda distance: distance > 0.17)
    qpos[:, -2:] = 0
    qvel = random.uniform(-0.005, 0.005, (count, model.nv))
    qvel[:, -4:] = 0
    return qpos, qvel


def _draw_until(
    random: np.random.Generator,
    count: int,
    low: tuple[float, float],
    high: tuple[float, float],
    fits: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Gives points [count, 2] even over a box, those redrawn whose distance from the origin does not fit."""
    points = random.uniform(low, high, (count, 2))
    while len(wrong := np.flatnonzero(~fits(np.linalg.norm(points, axis=1)))):
        points[wrong] = random.uniform(low, high, (len(wrong), 2))
    return points
