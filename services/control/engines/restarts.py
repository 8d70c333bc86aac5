"""Decides whether and when a crashed process starts again; knows no process and no clock of its own."""

from __future__ import annotations

import random
from collections import deque

CRASHES = 5
WINDOW_S = 60.0
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0


class Restarts:
    """The crashes of one process: `crashed` gives the delay before its next life, or None to give up."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._crashes: deque[float] = deque()
        self.count = 0

    def crashed(self, now: float) -> float | None:
        """Notes a crash at `now` (seconds); gives a doubling, jittered delay, or None at the fifth in a minute."""
        self._crashes.append(now)
        while now - self._crashes[0] > WINDOW_S:
            self._crashes.popleft()
        if len(self._crashes) >= CRASHES:
            return None
        self.count += 1
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (len(self._crashes) - 1))
        # Jitter parts processes that crash together; a first crash is mostly a lone one, and costs what it must.
        return delay if len(self._crashes) == 1 else delay * self._rng.uniform(0.75, 1.25)
