"""CartPole-v1 and a small MLP in nothing but numpy: the second limit, which owes nothing to Headrace's own code.

The physics and limits are those of Barto, Sutton and Anderson (1983) as CartPole-v1 sets them, in float32; an episode's
end is reset in the same step.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

GRAVITY, POLE_MASS, TOTAL_MASS, HALF_LENGTH, FORCE, TICK = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
X_LIMIT, ANGLE_LIMIT, STEP_LIMIT = 2.4, 12 * 2 * np.pi / 360, 500
F = np.float32


class NumpyCartPole:
    """`n` poles and a tanh MLP of `hidden` units with random weights; `step` acts by sampling from its softmax."""

    def __init__(self, n: int, hidden: tuple[int, ...], seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._n = n
        self._state = self._fresh(n)
        self._ages = np.zeros(n, np.int32)
        sizes = (4, *hidden, 2)
        self._layers = [
            (self._rng.standard_normal((b, a), F) / F(a**0.5), np.zeros((b, 1), F)) for a, b in pairwise(sizes)
        ]

    def step(self) -> int:
        """Steps every pole once with an action drawn from the policy; gives how many."""
        self._advance(self._act())
        return self._n

    def _fresh(self, count: int) -> np.ndarray:
        # Components first: each row is contiguous, and the network is a product from the left.
        return self._rng.uniform(-0.05, 0.05, (4, count)).astype(F)

    def _act(self) -> np.ndarray:
        x = self._state
        for weight, bias in self._layers[:-1]:
            x = weight @ x
            x += bias
            np.tanh(x, out=x)
        weight, bias = self._layers[-1]
        logits = weight @ x + bias
        right: np.ndarray = self._rng.random(self._n, F) * (F(1) + np.exp(logits[0] - logits[1])) < F(1)
        return right

    def _advance(self, right: np.ndarray) -> None:
        x, speed, angle, spin = self._state
        force = np.where(right, F(FORCE), F(-FORCE))
        cos, sin = np.cos(angle), np.sin(angle)
        push = (force + F(POLE_MASS * HALF_LENGTH) * spin * spin * sin) / F(TOTAL_MASS)
        turn = (F(GRAVITY) * sin - cos * push) / (F(HALF_LENGTH) * (F(4 / 3) - F(POLE_MASS / TOTAL_MASS) * cos * cos))
        pull = push - F(POLE_MASS * HALF_LENGTH / TOTAL_MASS) * turn * cos
        x += F(TICK) * speed
        speed += F(TICK) * pull
        angle += F(TICK) * spin
        spin += F(TICK) * turn
        self._ages += 1
        ended = (np.abs(x) > F(X_LIMIT)) | (np.abs(angle) > F(ANGLE_LIMIT)) | (self._ages >= STEP_LIMIT)
        over = np.flatnonzero(ended)
        if len(over):
            self._state[:, over] = self._fresh(len(over))
            self._ages[over] = 0
