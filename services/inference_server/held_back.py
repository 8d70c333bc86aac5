"""Which of the weights that came acting takes: the newest, or for experiments older ones. Knows no socket."""

from __future__ import annotations

from collections import deque

from common.messages import Weights
from common.types import version_updates


class HeldBack:
    """Weights in the order they came, from those to act with to the newest; these are `versions` apart."""

    def __init__(self, versions: int) -> None:
        self._versions = versions
        self._kept: deque[Weights] = deque()

    @property
    def newest(self) -> int:
        return self._kept[-1].version if self._kept else -1

    def take(self, weights: Weights) -> Weights:
        """Takes newer weights; gives the newest that are `versions` behind them, or the first of the learner's life."""
        if not 0 < weights.version - self.newest <= version_updates(weights.version):
            # What another life's weights act is too old for the tables of this one, or of another run.
            self._kept.clear()
        self._kept.append(weights)
        while len(self._kept) > 1 and self._kept[1].version <= weights.version - self._versions:
            self._kept.popleft()
        return self._kept[0]
