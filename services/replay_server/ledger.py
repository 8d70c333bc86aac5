"""What was inserted, counted once: totals per stream, and the episodes that ended, until the learner hears of them."""

from __future__ import annotations

import numpy as np

from common.types import Arrays

_NO_EPISODES: Arrays = {
    "episode_returns": np.zeros(0, np.float32),
    "episode_lengths": np.zeros(0, np.int32),
    "episode_origins": np.zeros((0, 2), np.int64),
}
# Made once: most reports are without news, where batches are many.
_NO_NEWS = _NO_EPISODES | {"counters": np.zeros((0, 4), np.int64)}


class Ledger:
    """Cumulative counters per stream life, merged by maximum, so that a repeated or lost message changes nothing."""

    def __init__(self) -> None:
        self._streams: dict[int, tuple[int, int, int]] = {}
        self._changed: set[int] = set()
        self._episodes: list[tuple[int, str, Arrays]] = []

    def record(self, slot: str, life: int, totals: tuple[int, int, int], arrays: Arrays) -> None:
        """Counts a stored unroll: its stream's (number, steps, frames) so far, and the episodes that ended in it."""
        known = self._streams.get(life, (0, 0, 0))
        if totals[0] <= known[0]:
            return
        self._streams[life] = (totals[0], max(known[1], totals[1]), max(known[2], totals[2]))
        self._changed.add(life)
        if ended := len(arrays["episode_returns"]):
            # Copies: a view would keep the whole unroll alive.
            found = {name: arrays[name].copy() for name in ("episode_returns", "episode_lengths")}
            found["episode_origins"] = np.array([(life, totals[0])] * ended, np.int64)
            self._episodes.append((totals[0], slot, found))

    def report(self) -> Arrays:
        """Gives what changed since the last report: `counters` [K, 4] and `episode_*` [E], as Batch carries them, by
        number and slot: else the mean of the last hundred would depend on which group was the faster."""
        if not self._changed:
            return dict(_NO_NEWS)
        parts = [_NO_EPISODES, *(arrays for *_, arrays in sorted(self._episodes, key=lambda e: e[:2]))]
        news = {name: np.concatenate([part[name] for part in parts]) for name in _NO_EPISODES}
        rows = [(life, *self._streams[life]) for life in sorted(self._changed)]
        self._changed, self._episodes = set(), []
        return news | {"counters": np.array(rows, np.int64)}

    def repeat_all(self) -> None:
        """Makes the next report tell every stream's totals, of ended ones too: a new learner may know less."""
        self._changed.update(self._streams)
