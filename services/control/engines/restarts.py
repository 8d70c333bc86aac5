"""Decides whether and when a crashed process starts again; knows no process and no clock."""

from __future__ import annotations

import random

CRASHES = 5
LONG_S = 60.0
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0


class Restarts:
    """The crashes of one process: `crashed` gives the delay before its next life, or None to give up."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._in_a_row = 0
        self.count = 0

    def crashed(self, lived_s: float) -> float | None:
        """Notes a crash after a life of `lived_s`; gives a doubling, jittered delay, or None at the fifth in a row.

        A life longer than LONG_S begins a new row. It is the life that counts and not the clock: where starting takes
        20 s, five crashes never fall into one minute.
        """
        self._in_a_row = 1 if lived_s > LONG_S else self._in_a_row + 1
        if self._in_a_row >= CRASHES:
            return None
        self.count += 1
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._in_a_row - 1))
        # Jitter parts processes that crash together; a first crash is mostly a lone one, and costs what it must.
        return delay if self._in_a_row == 1 else delay * self._rng.uniform(0.75, 1.25)
