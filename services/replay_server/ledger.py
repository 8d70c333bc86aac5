"""What was inserted, counted once: totals per stream, and the episodes that ended, until the learner hears of them."""

from __future__ import annotations

import numpy as np

from common.types import Arrays


class Ledger:
    """Cumulative counters per stream life, merged by maximum, so that a repeated or lost message changes nothing."""

    def __init__(self) -> None:
        self._streams: dict[int, tuple[int, int, int]] = {}
        self._changed: set[int] = set()
        self._returns: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._origins: list[tuple[int, int]] = []

    def record(self, life: int, totals: tuple[int, int, int], arrays: Arrays) -> None:
        """Counts a stored unroll: its stream's (number, steps, frames) so far, and the episodes that ended in it."""
        known = self._streams.get(life, (0, 0, 0))
        if totals[0] <= known[0]:
            return
        self._streams[life] = (totals[0], max(known[1], totals[1]), max(known[2], totals[2]))
        self._changed.add(life)
        if len(arrays["episode_returns"]):
            # Copies: a view would keep the whole unroll alive.
            self._returns.append(arrays["episode_returns"].copy())
            self._lengths.append(arrays["episode_lengths"].copy())
            self._origins += [(life, totals[0])] * len(arrays["episode_returns"])

    def report(self) -> Arrays:
        """Gives what changed since the last report: `counters` [K, 4] and `episode_*` [E], as Batch carries them."""
        rows = [(life, *self._streams[life]) for life in sorted(self._changed)]
        news = {
            "counters": np.array(rows, np.int64).reshape(-1, 4),
            "episode_returns": np.concatenate([np.zeros(0, np.float32), *self._returns]),
            "episode_lengths": np.concatenate([np.zeros(0, np.int32), *self._lengths]),
            "episode_origins": np.array(self._origins, np.int64).reshape(-1, 2),
        }
        self._changed.clear()
        self._returns.clear()
        self._lengths.clear()
        self._origins.clear()
        return news

    def repeat_all(self) -> None:
        """Makes the next report tell every stream's totals: a new learner may know less."""
        self._changed.update(self._streams)
