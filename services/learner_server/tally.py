"""What the job has lived through: totals per stream, recent episodes, and whether it may stop. All of it is saved."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from common.config import StopConfig
from common.types import Arrays

_LIMITED = ("steps", "frames", "seconds")
_TOTALS = (*_LIMITED, "episodes", "trained_steps")


class Tally:
    """Counters merged by maximum from what Batches say, so that a repeated message counts nothing twice."""

    def __init__(self, stop: StopConfig) -> None:
        self._stop = stop
        self._streams: dict[int, tuple[int, int, int]] = {}
        self._trained: dict[int, int] = {}
        self._recent: deque[tuple[float, int]] = deque(maxlen=stop.episodes)
        self.steps = self.frames = self.episodes = self.trained_steps = 0
        self.seconds = 0.0

    def merge(self, *parts: Arrays) -> int:
        """Takes in `counters` and `episode_*` of one draw's Batches; gives the number of new episodes.

        Told by the unroll they came with: a restarted replay-server repeats what the one before it had passed on. Two
        tables answer in any order, so no counter is taken in before all episodes.
        """
        before, told = self.episodes, set[tuple[int, int]]()
        for arrays in parts:
            origins = [(life, number) for life, number in arrays["episode_origins"].tolist()]
            news = [o not in told and o[1] > self._streams.get(o[0], (0,))[0] for o in origins]
            told.update(origins)
            returns, lengths = arrays["episode_returns"][news].tolist(), arrays["episode_lengths"][news].tolist()
            self._recent.extend(zip(returns, lengths, strict=True))
            self.episodes += len(returns)
        for life, number, steps, frames in (row for arrays in parts for row in arrays["counters"].tolist()):
            known = self._streams.get(life, (0, 0, 0))
            if number > known[0]:
                self._streams[life] = (number, steps, frames)
                self.steps += steps - known[1]
                self.frames += frames - known[2]
        return self.episodes - before

    def untrained(self, origins: np.ndarray, unrolls: list[Arrays]) -> list[Arrays]:
        """Gives the unrolls not trained on before; a restarted replay-server may hand one, of `origins`, out again."""
        fresh = []
        for (life, number), unroll in zip(origins.tolist(), unrolls, strict=True):
            if number > self._trained.get(life, 0):
                self._trained[life] = number
                fresh.append(unroll)
        return fresh

    @property
    def episode_return(self) -> float:
        """Mean return of the last `stop.episodes` training episodes; NaN before the first ends."""
        return sum(total for total, _ in self._recent) / len(self._recent) if self._recent else float("nan")

    @property
    def episode_length(self) -> float:
        """Mean length of those episodes, in steps."""
        return sum(steps for _, steps in self._recent) / len(self._recent) if self._recent else float("nan")

    def outcome(self) -> str | None:
        """Says which stop condition holds, if any: solved, steps, frames or seconds."""
        stop = self._stop
        full = len(self._recent) == stop.episodes
        if stop.episode_return is not None and full and self.episode_return >= stop.episode_return:
            return "solved"
        return next((name for name in _LIMITED if 0 < getattr(stop, name) <= getattr(self, name)), None)

    def progress(self) -> float:
        """Gives the share of the job's budget that is used up, 0 to 1: what schedules follow."""
        shares = [getattr(self, name) / getattr(self._stop, name) for name in _LIMITED if getattr(self._stop, name)]
        return min(1.0, max(shares, default=0.0))

    def state_dict(self) -> dict[str, Any]:
        return {
            "streams": {str(life): list(totals) for life, totals in self._streams.items()},
            "trained": {str(life): number for life, number in self._trained.items()},
            "returns": [total for total, _ in self._recent],
            "lengths": [steps for _, steps in self._recent],
            **{name: getattr(self, name) for name in _TOTALS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._streams = {int(life): (n, steps, frames) for life, (n, steps, frames) in state["streams"].items()}
        self._trained = {int(life): number for life, number in state["trained"].items()}
        self._recent = deque(zip(state["returns"], state["lengths"], strict=True), maxlen=self._stop.episodes)
        for name in _TOTALS:
            setattr(self, name, state[name])
